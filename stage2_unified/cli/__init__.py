"""Commands of stage 2."""
