"""WebDataset shards with an index: writer, reader, loader, local cache."""
