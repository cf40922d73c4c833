"""Tests of `densitywatch assess`."""
