"""``medunifier bench gpu``: rates, memory and profiles of the whole pipeline on one GPU, with targets and peers.

A *measurement* (``tokenizer.py``, ``unified.py``, ``generation.py``) is a generator: it builds and warms up, yields
once, then measures and returns its figures. ``runner.py`` runs each in a process of its own: a few compile side by
side, and while one measures the others are stopped. ``table.py`` makes rows with targets of the figures.
"""
