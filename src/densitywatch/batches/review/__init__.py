"""`densitywatch review`: a person judges flagged images."""
