"""Stage 2: one decoder-only transformer over report text and image codes, trained on four objectives.

It depends on stage 1 only through the frozen tokenizer.
"""
