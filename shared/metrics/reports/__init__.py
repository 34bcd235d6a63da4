"""Metrics of generated reports against references."""
