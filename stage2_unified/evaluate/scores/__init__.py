"""Scores shared by our outputs and those of other systems."""
