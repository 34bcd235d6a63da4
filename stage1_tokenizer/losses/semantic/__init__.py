"""Semantic terms of stage 1: heads on the quantized features that learn findings, reports or a teacher's features."""
