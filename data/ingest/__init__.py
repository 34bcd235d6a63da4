"""`medunifier ingest`: convert an archive to image shards."""
