"""Adversarial and perceptual losses."""
