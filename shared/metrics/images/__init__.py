"""Metrics of reconstructed and generated images."""
