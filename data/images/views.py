"""View positions: validated against the terms of the field, since they come from free text, and classified."""

import re
from collections.abc import Iterator, MutableSequence
from typing import Any

from medunifier.data.files.header_values import attribute, code_string, code_strings, long_string

# DICOM's terms for ViewPosition (PS3.3 C.8.1.1, C.8.11.5), MIMIC-CXR's and PadChest's spellings, common words.
_WORDS = frozenset([
    "AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "LAT", "LATERAL", "L", "R",
    "LEFT", "RIGHT", "LARGE", "FRONTAL", "OBLIQUE", "DECUBITUS", "AXIAL", "XTABLE", "SWIMMERS", "L5", "S1",
    "LORDOTIC", "APICAL", "COSTAL", "RIBS", "HORIZONTAL", "VERTICAL", "ERECT", "UPRIGHT", "SUPINE", "SITTING",
    "PORTABLE", "PEDIATRIC", "CHEST", "VIEW", "STANDING", "EXPIRATION", "INSPIRATION", "UNK", "LLAT", "RLAT",
    "ANTERIOR", "POSTERIOR", "SEMI", "RECUMBENT", "MOBILE", "BEDSIDE", "PROJECTION", "THORAX",
])  # fmt: skip
_SEPARATORS = re.compile(r"[\s_/.,()-]+")
_SPELLED_OUT = (
    (re.compile(r"\bANTERO[\s_-]?POSTERIOR\b|\bA\.?P\.?(?![A-Z])"), "AP"),
    (re.compile(r"\bPOSTERO[\s_-]?ANTERIOR\b|\bP\.?A\.?(?![A-Z])"), "PA"),
)

_PROJECTIONS = {
    "AP": "ap", "PA": "pa", "LL": "lateral", "RL": "lateral", "LAT": "lateral", "LATERAL": "lateral",
    "LLAT": "lateral", "RLAT": "lateral",
}  # fmt: skip
# They say how the patient stood or which side faced the detector, and leave the projection what it is. The others
# ("DECUBITUS", "AXIAL", "OBLIQUE", …) make it a special view.
_NEUTRAL = frozenset([
    "L", "R", "LEFT", "RIGHT", "LARGE", "FRONTAL", "XTABLE", "HORIZONTAL", "VERTICAL", "ERECT", "UPRIGHT", "SUPINE",
    "SITTING", "PORTABLE", "PEDIATRIC", "CHEST", "VIEW", "STANDING", "EXPIRATION", "INSPIRATION", "SEMI",
    "RECUMBENT", "MOBILE", "BEDSIDE", "PROJECTION", "THORAX",
])  # fmt: skip

# Codes of CID 4010 (DX View), SNOMED CT and the older SNOMED-RT, and R-10214, which devices write for PA.
_VIEW_OF_CODE = {
    "399348003": "AP", "R-10206": "AP",
    "272479007": "PA", "R-40888": "PA", "R-10214": "PA",
    "399173006": "LL", "R-10236": "LL",
    "399198007": "RL", "R-10232": "RL",
    "399067008": "LATERAL", "R-102CD": "LATERAL",
    "399033003": "FRONTAL", "R-10202": "FRONTAL",
    "399182000": "OBLIQUE", "R-102C1": "OBLIQUE",
    "399059000": "OBLIQUE", "R-10216": "OBLIQUE",
    "399312000": "OBLIQUE", "R-10208": "OBLIQUE",
    "399135007": "LAO", "R-10220": "LAO",
    "399356000": "RAO", "R-40985": "RAO",
    "399006002": "LPO", "R-10212": "LPO",
    "399038007": "RPO", "R-10210": "RPO",
    "399061009": "AXIAL", "R-10241": "AXIAL",
}  # fmt: skip


def view_position(text: str) -> str:
    """Return the position in upper case with single spaces if every word is a term of the field, else "".

    "postero-anterior" becomes "PA". "RL" and "LL" (right, left lateral) are kept; :func:`projection` classifies them.
    """
    plain = text.upper()
    for spelling, term in _SPELLED_OUT:
        plain = spelling.sub(term, plain)
    words = [word for word in _SEPARATORS.split(plain) if word]
    return " ".join(words) if all(word in _WORDS for word in words) else ""


def projection(position: str) -> str:
    """Return "pa", "ap" or "lateral", or "" for other, ambiguous and unknown positions.

    "RL", "Lateral, left" and "XTABLE LATERAL" are lateral, "AP SUPINE" is ap. A decubitus, oblique, axial or lordotic
    view is none of the three: anatomy and fluid lie differently on it.
    """
    words = view_position(position).split()
    found = {_PROJECTIONS[word] for word in words if word in _PROJECTIONS}
    plain = all(word in _PROJECTIONS or word in _NEUTRAL for word in words)
    return found.pop() if len(found) == 1 and plain else ""


def view_of_header(header: Any) -> str:
    """Return the view of a DICOM header in upper case, "" if it states none.

    ViewPosition if it is a term of the field; else the first known code, or known meaning, of ViewCodeSequence; else
    the direction of the rows in PatientOrientation: LATERAL where they run between front and back, FRONTAL where they
    run between left and right. Text that is none of these is returned as it stands in ViewPosition.

    Args:
        header: a ``pydicom.Dataset``.
    """
    stated = code_string(attribute(header, "ViewPosition"))
    return view_position(stated) or next(_coded(header), "") or _from_orientation(header) or stated


def _coded(header: Any) -> Iterator[str]:
    items = attribute(header, "ViewCodeSequence")
    for item in items if isinstance(items, list | MutableSequence) else []:
        code, meaning = (long_string(attribute(item, name)) for name in ("CodeValue", "CodeMeaning"))
        if view := _VIEW_OF_CODE.get(code.upper()) or view_position(meaning):
            yield view


def _from_orientation(header: Any) -> str:
    directions = code_strings(attribute(header, "PatientOrientation"))
    if len(directions) != 2 or directions[1] not in ("F", "H"):  # a column runs to the feet, or to the head
        return ""
    return {"A": "LATERAL", "P": "LATERAL", "L": "FRONTAL", "R": "FRONTAL"}.get(directions[0], "")
