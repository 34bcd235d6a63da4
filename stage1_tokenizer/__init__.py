"""Stage 1: a VQ-GAN that turns a radiograph into a grid of codes and back; its product is a frozen tokenizer."""
