"""Metrics: independent functions and small accumulators, one per module."""
