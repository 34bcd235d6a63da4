"""Files that are read from outside or written step by step: bounded reads, model folders, row files, settings records."""
