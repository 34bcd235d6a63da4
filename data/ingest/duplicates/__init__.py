"""Duplicate and near-duplicate images in an archive: fingerprints, search, removal."""
