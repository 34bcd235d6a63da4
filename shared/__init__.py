"""What both stages use: configuration, artifacts, run folders, checkpoints, the training loop, metrics, pages.

Imports go one way: ``shared <- data <- stage1_tokenizer <- stage2_unified <- medunifier``.
"""
