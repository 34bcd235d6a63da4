"""Used by both stages: configuration, artifacts, training infrastructure, metrics, result pages.

Imports go one way: ``shared <- data <- stage1_tokenizer <- stage2_unified <- medunifier``.
"""
