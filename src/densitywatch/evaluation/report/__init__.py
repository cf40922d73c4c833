"""reports/index.html: all models on one page."""
