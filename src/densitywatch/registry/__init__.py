"""Versions, champions and the gate; what a served model answers. Start with versions.py."""
