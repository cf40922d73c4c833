"""`densitywatch assess FOLDER`: how well the detector finds bad images that somebody has sorted by kind."""
