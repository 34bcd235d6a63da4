"""Radiograph files: DICOM decoding, windows, checks, resizing, masks."""
