"""Radiograph files: DICOM decoding, windowing, checks, resizing, masks."""
