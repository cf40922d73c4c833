"""The member scores, a file for each kind. Higher is more outlying; each docstring names its source."""
