"""The dataset: fetched, prepared, checked, and read by every later stage.

Start with dataset.py (what the other wings read) and prepare.py (how it is made)."""
