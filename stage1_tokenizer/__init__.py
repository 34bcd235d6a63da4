"""Stage 1: train a VQ-GAN that encodes a radiograph as a grid of codes, and export it as a frozen tokenizer."""
