"""Values of DICOM attributes, one function a value representation (PS3.5 6.2): equal values have one spelling.

Every function accepts what ``Dataset.get`` returns, None included, and returns "" for an absent or invalid value.
"""

import re
from collections.abc import Iterable
from typing import Any

_PADDING = " \0\t\r\n"
_DATE = re.compile(r"(\d{4})([.-]?)(\d{2})\2(\d{2})")
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.\d*)?)?)?")


def attribute(header: Any, name: str) -> Any:
    """Return a value of a ``pydicom.Dataset``, None if it is absent or damaged: the others may still be readable."""
    try:
        return header.get(name)
    except Exception:  # pydicom decodes a value when it is first read, and raises nearly anything
        return None


def long_string(value: Any) -> str:
    """Return an LO or SH value: leading and trailing spaces are insignificant."""
    return "\\".join(_parts(value)).strip(_PADDING)


def code_string(value: Any) -> str:
    """Return a CS value, the first of several: padding removed, upper case."""
    return next((part.upper() for part in _parts(value) if part), "")


def code_strings(value: Any) -> list[str]:
    """Return all values of a CS attribute, such as the two of PatientOrientation."""
    return [part.upper() for part in _parts(value)]


def uid(value: Any) -> str:
    """Return a UI value, the first of several, without the NUL or the spaces that pad it."""
    return next((part for part in _parts(value) if part), "")


def date(value: Any) -> str:
    """Return a DA value as YYYYMMDD; also the form YYYY.MM.DD of earlier versions of the standard."""
    match = _DATE.fullmatch(long_string(value))
    return "".join(match.group(1, 3, 4)) if match else ""


def time(value: Any) -> str:
    """Return a TM value as HHMMSS, without fractions; also the form HH:MM:SS of earlier versions."""
    match = _TIME.fullmatch(long_string(value))
    return "".join(part or "00" for part in match.groups()) if match else ""


def _parts(value: Any) -> list[str]:
    if value is None:
        return []
    # pydicom returns the values of one attribute as a sequence that is not a str.
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
    return [str(part).strip(_PADDING) for part in (value if several else [value]) if part is not None]
