"""`medunifier ingest`: from an archive to image shards."""
