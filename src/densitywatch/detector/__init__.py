"""The outlier detector: member scores, one score made of them, conformal p-values. Start with detector.py."""
