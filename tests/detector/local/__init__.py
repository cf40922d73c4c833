"""Tests of local features and densities over them."""
