"""Redaction of free text by patterns: what matches becomes ``___``, the mark that MIMIC-CXR's makers left.

Patterns find what has a form: dates, telephone numbers, a name after a title. A name without a title has none.
So this lowers a risk and does not remove it; it is no de-identification in any law's sense.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_CONFIG_BYTES, read_bounded

MARK = "___"

_MONTH = r"(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"  # noqa: E501
_DAY = r"(?:[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?"
_NAME = r"[A-Z][\w'’-]*(?:,?\s+(?:[A-Z]\.|[A-Z][\w'’-]+)){0,3}"

# By name, in the order in which they are applied: a date is not to be taken for a telephone number.
BUILT_IN: dict[str, tuple[str, ...]] = {
    "dates": (
        r"\b\d{4}[/.-]\d{1,2}[/.-]\d{1,2}\b",
        r"\b\d{1,2}[/.-]\d{1,2}[/.-](?:\d{4}|\d{2})\b",
        rf"\b{_DAY}(?:\s+of)?[\s-]+{_MONTH}(?:,?[\s-]+(?:\d{{4}}|\d{{2}})\b)?(?!\w)",
        rf"\b{_MONTH}\s+{_DAY}\b(?:,?\s+\d{{4}}\b)?",
        rf"\b{_MONTH},?\s+(?:of\s+)?(?:19|20)\d\d\b",
        # Day and month alone look like a fraction or a level of the spine; the word before tells.
        r"\b(?i:on|from|of|dated|since|date:)\s+(\d{1,2}/\d{1,2})\b(?!/)",
    ),
    "times": (
        r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\s*(?i:[ap]\.?m\b\.?))?",
        r"\b(?:0?[1-9]|1[0-2])\s*(?i:[ap]\.m\.|[ap]m\b)",
    ),
    "phones": (
        r"(?i:\b(?:tel|telephone|phone|fax|pager|beeper)\b\.?(?:\s*(?:no\.?|number|#))?\s*(?:is\s+)?:?)\s*"
        r"([+(]?\d[\d ()./-]*\d)",
        r"(?<![\w.])(?:\+?\d{1,3}[ .-]?)?(?:\(\d{3}\)\s*|\d{3}[ .-])\d{3}[ .-]\d{4}\b",
        r"(?<!\w)\+\d{1,3}(?:[ .-]?\(?\d{2,5}\)?){2,4}\b",
    ),
    "names": (
        rf"\b(?:D[Rr]s?|M[Rr]s?|M[Ss]|M[Ii]ss|P[Rr][Oo][Ff](?:essor|ESSOR)?|D[Oo][Cc][Tt][Oo][Rr])\b\.?\s+({_NAME})",
        rf"\b({_NAME}),?\s+(?:M\.?D|D\.?O|R\.?N|Ph\.?D)\b",
    ),
    "numbers": (
        r"(?i:\b(?:MRN|medical record|accession|acc|patient id|case|encounter)\b\.?(?:\s*(?:no\.?|number|id|#))?)"
        r"\s*[:#]?\s*([A-Za-z]{0,3}-?\d[\w-]*)",
        r"(?<![\w.])\d{6,}\b",
    ),
}


def patterns(names: str, file: str) -> tuple[str, ...]:
    """Regular expressions of the built-in ``names`` ("dates,names", "all", or ""), then those of ``file``.

    The file holds one regular expression a line (Python's); blank lines and those that begin with ``#`` are
    passed over.

    Raises:
        UserError: for an unknown name, a file that cannot be read, a line that is no regular expression or
            one that matches nothing at all, everywhere.
    """
    chosen = [name for raw in names.split(",") if (name := raw.strip())]
    unknown = [name for name in chosen if name not in (*BUILT_IN, "all")]
    if unknown:
        raise UserError(f"no patterns named {', '.join(unknown)}; there are: {', '.join(BUILT_IN)}, all")
    found = [line for name, lines in BUILT_IN.items() if name in chosen or "all" in chosen for line in lines]
    return tuple(found + (_of_file(Path(file)) if file else []))


def _of_file(path: Path) -> list[str]:
    try:
        lines = read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a file of patterns: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            matches_nothing = re.compile(line).search("") is not None
        except re.error as error:
            raise UserError(f"{path}, line {number} is no regular expression: {error}") from None
        if matches_nothing:
            raise UserError(f"{path}, line {number} matches the empty text, so it would mark every place")
        found.append(line)
    return found


def redact(text: str, expressions: Sequence[str]) -> tuple[str, int]:
    """The text with every match as ``___``, and how many there were.

    Where an expression has a group, the group alone is replaced: "Dr. Smith" becomes "Dr. ___".
    """
    total = 0
    for expression in expressions:
        text, count = _compiled(expression).subn(_marked, text)
        total += count
    return text, total


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression)


def _marked(match: re.Match[str]) -> str:
    if not match.lastindex or match[1] is None:
        return MARK
    whole, (begin, end) = match[0], match.span(1)
    return whole[: begin - match.start()] + MARK + whole[end - match.start() :]
