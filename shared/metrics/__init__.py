"""Metrics: each a function or a small accumulator of its own that can be read alone."""
