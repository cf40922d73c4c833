"""The detector and its rivals on the outlier panel. Start with benchmark.py."""
