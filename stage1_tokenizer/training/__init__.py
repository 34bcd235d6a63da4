"""Training step of generator and discriminator, EMA of the weights, and validation metrics."""
