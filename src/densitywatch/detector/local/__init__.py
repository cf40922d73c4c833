"""Local features of photographs, densities over them, and maps of what is unexpected."""
