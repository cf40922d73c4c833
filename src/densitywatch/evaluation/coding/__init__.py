"""Images coded into a file with a model's own probabilities: the proof that a likelihood is real."""
