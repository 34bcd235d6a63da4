"""Stage 2: one decoder-only transformer over report text and image codes, trained on four objectives.

It knows of stage 1 only the frozen tokenizer.
"""
