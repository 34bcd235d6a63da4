"""Validate view positions against the terms of the field, since they come from free text."""

import re

# DICOM's terms for ViewPosition (PS3.3 C.8.1.1, C.8.11.5), MIMIC-CXR's and PadChest's spellings, common words.
_WORDS = frozenset([
    "AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "LAT", "LATERAL", "L", "R",
    "LEFT", "RIGHT", "LARGE", "FRONTAL", "OBLIQUE", "DECUBITUS", "AXIAL", "XTABLE", "SWIMMERS", "L5", "S1",
    "LORDOTIC", "APICAL", "COSTAL", "RIBS", "HORIZONTAL", "VERTICAL", "ERECT", "UPRIGHT", "SUPINE", "SITTING",
    "PORTABLE", "PEDIATRIC", "CHEST", "VIEW", "STANDING", "EXPIRATION", "INSPIRATION", "UNK",
])  # fmt: skip
_SEPARATORS = re.compile(r"[\s_/-]+")


def view_position(text: str) -> str:
    """Return the position unchanged if every word is a term of the field, else ""."""
    words = [word for word in _SEPARATORS.split(text.strip().upper()) if word]
    return text.strip() if words and all(word in _WORDS for word in words) else ""
