"""The checks on the dataset, run by Great Expectations. Start with validate.py."""
