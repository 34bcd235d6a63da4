"""Near-duplicate images in an archive: fingerprints, search, removal."""
