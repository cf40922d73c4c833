"""What all pages and reports share: charts, pictures, words."""
