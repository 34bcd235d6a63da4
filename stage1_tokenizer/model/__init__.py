"""The VQ-GAN: encoder, quantizers, decoder, discriminator."""
