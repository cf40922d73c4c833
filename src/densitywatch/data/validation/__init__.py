"""What is expected of the dataset, checked by Great Expectations. Start with validate.py."""
