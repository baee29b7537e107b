"""Measures of a frozen image model."""
