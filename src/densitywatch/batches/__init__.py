"""A batch of files in, a folder of results out. Start with score_batch.py."""
