"""The generator and discriminator step, weight EMA and validation metrics."""
