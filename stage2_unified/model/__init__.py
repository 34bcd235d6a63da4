"""The unified model: configuration, decoder, vocabulary, sequence layout, KV caches, processor."""
