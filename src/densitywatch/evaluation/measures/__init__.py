"""One file for each thing that is measured; evaluators.py next door lists them in order."""
