"""Images as a file as short as a model says: the proof that a likelihood is real."""
