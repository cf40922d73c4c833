"""One file for each thing that is measured. evaluators.py, one folder up, lists the evaluators in order."""
