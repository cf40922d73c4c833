"""Training: train.py is the stage, loop.py the one loop, steps.py one step."""
