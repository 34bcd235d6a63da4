"""Data pipeline for radiographs and reports: archives, sources, ingest, and the shards that training reads."""
