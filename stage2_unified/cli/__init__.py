"""Command-line interface of stage 2."""
