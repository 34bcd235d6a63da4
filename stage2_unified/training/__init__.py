"""Training of stage 2: the four-objective step, its global batch, and the batches of studies."""
