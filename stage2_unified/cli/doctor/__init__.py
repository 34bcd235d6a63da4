"""``medunifier doctor``: what this machine can do, what is missing, which sizes fit."""
