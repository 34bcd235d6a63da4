"""Endings of image files. UIDs contain dots, so only known endings are removed, never "the last suffix"."""

import re

_IMAGE = re.compile(r"\.(?:(?:dcm|dicom|dic|ima|png|jpe?g)(?:\.gz)?|gz)$", re.IGNORECASE)
_REPORT = (".txt", ".TXT")


def has_image_ending(name: str) -> bool:
    """Return whether a file name ends like an image: ``a.dcm``, ``a.IMA``, ``a.dcm.gz``, ``a.jpeg``."""
    return _IMAGE.search(name) is not None


def without_ending(name: str) -> str:
    """Return a file name without its image ending: ``image.dcm.gz`` -> ``image``; ``1.2.840.7`` is unchanged."""
    return _IMAGE.sub("", name) or name


def report_names(name: str) -> list[str]:
    """Return the names that the report of an image file or of a study's folder may have, in order of preference.

    ``image.dcm`` -> ``image.dcm.txt``, ``image.txt``; ``1.2.840.7`` -> ``1.2.840.7.txt``, never ``1.2.840.txt``,
    which may be another patient's.
    """
    stems = dict.fromkeys((name, without_ending(name)))
    return [stem + ending for stem in stems for ending in _REPORT]
