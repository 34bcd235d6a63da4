"""Evaluation of other systems' reports, images and embeddings."""
