"""Training. Start with loop.py: the one loop of all models.

train.py is the stage. A step is in steps.py (one loss) or adversarial.py (two players). optimizers.py moves the
weights, checkpoint.py the state to go on from, identity.py what decides the weights, sharing.py several processes.
"""
