"""Commands of stage 1: tokenize, convert."""
