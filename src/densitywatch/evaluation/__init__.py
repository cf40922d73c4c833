"""Test figures and pictures of every model. evaluate.py is the stage, measures/ has a file for each figure."""
