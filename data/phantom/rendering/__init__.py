"""Rendering of phantom radiographs from a state."""
