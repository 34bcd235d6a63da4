"""The studies that a task is evaluated on, and what the model is conditioned on."""
