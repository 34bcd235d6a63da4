"""Training infrastructure of both stages: loop, optimizer step, checkpoints, run folder, distributed helpers, MFU."""
