"""``medunifier doctor``: hardware, missing packages and weights, and the presets that fit into memory."""
