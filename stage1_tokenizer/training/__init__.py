"""Training step of generator and discriminator, and validation metrics."""
