"""``medunifier bench gpu``: rates, memory and profiles of the whole pipeline on one GPU, with targets and peers.

A *measurement* (``tokenizer.py``, ``unified.py``, ``generation.py``) is a generator: it builds and warms up, yields
once, then measures and returns its figures. ``runner.py`` runs each in a process of its own: several compile side by
side, as far as the GPU's memory allows, and one at a time measures. ``table.py`` makes rows with targets of the
figures.
"""
