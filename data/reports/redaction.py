"""Pattern-based redaction of free text: matches are replaced by ``___``, as in MIMIC-CXR.

Patterns find identifiers with a recognizable format: dates, telephone numbers, a name after a title, but not a name
without a title. This reduces the risk of disclosure but is not de-identification in the legal sense.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_CONFIG_BYTES, read_bounded
from medunifier.shared.files.text import decode_text, text_lines

MARK = "___"

_MONTH = r"(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"  # noqa: E501
_DAY = r"(?:[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?"
_NAME = r"[A-Z][\w'’-]*(?:,?\s+(?:[A-Z]\.|[A-Z][\w'’-]+)){0,3}"

# {name: patterns} in order of application, so that a date is not mistaken for a telephone number.
BUILT_IN: dict[str, tuple[str, ...]] = {
    "dates": (
        r"\b\d{4}[/.-]\d{1,2}[/.-]\d{1,2}\b",
        r"\b\d{1,2}[/.-]\d{1,2}[/.-](?:\d{4}|\d{2})\b",
        rf"\b{_DAY}(?:\s+of)?[\s-]+{_MONTH}(?:,?[\s-]+(?:\d{{4}}|\d{{2}})\b)?(?!\w)",
        rf"\b{_MONTH}\s+{_DAY}\b(?:,?\s+\d{{4}}\b)?",
        rf"\b{_MONTH},?\s+(?:of\s+)?(?:19|20)\d\d\b",
        # Day and month alone look like a fraction or a spinal level; a preposition identifies a date.
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
    """Return the regular expressions of the built-in ``names`` ("dates,names", "all", or ""), then of ``file``.

    The file has one Python regular expression per line; blank lines and lines that begin with ``#`` are
    skipped.

    Raises:
        UserError: for an unknown name, an unreadable file, a line that is not a regular expression, or one that
            matches the empty string.
    """
    selected = [name for raw in names.split(",") if (name := raw.strip())]
    unknown = [name for name in selected if name not in (*BUILT_IN, "all")]
    if unknown:
        raise UserError(f"unknown patterns {', '.join(unknown)}; choose from {', '.join(BUILT_IN)}, all")
    found = [line for name, lines in BUILT_IN.items() if name in selected or "all" in selected for line in lines]
    return tuple(found + (_read_patterns(Path(file)) if file else []))


def _read_patterns(path: Path) -> list[str]:
    try:
        lines = text_lines(decode_text(read_bounded(path, MAX_CONFIG_BYTES)))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a file of patterns: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            matches_empty = re.compile(line).search("") is not None
        except re.error as error:
            raise UserError(f"{path}, line {number} is not a regular expression: {error}") from None
        if matches_empty:
            raise UserError(f"{path}, line {number} matches the empty string, so it would redact every position")
        found.append(line)
    return found


def redact(text: str, expressions: Sequence[str]) -> tuple[str, int]:
    """Replace every match by ``___``; return the text and the number of matches.

    If an expression has a group, only the group is replaced: "Dr. Smith" becomes "Dr. ___".
    """
    total = 0
    for expression in expressions:
        text, count = _compiled(expression).subn(_replacement, text)
        total += count
    return text, total


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression)


def _replacement(match: re.Match[str]) -> str:
    if not match.lastindex or match[1] is None:
        return MARK
    whole, (begin, end) = match[0], match.span(1)
    return whole[: begin - match.start()] + MARK + whole[end - match.start() :]
