"""Rewrite report text so that the phrase tables need one form: dictated punctuation, abbreviations, signs.

Dictation programs write "period" for a full stop; notes use "#" for a fracture, "?" for a query, ">" for "more likely
than", "c.t." for "ct". The rewriting is conservative: each sign or word also has a harmless meaning ("tube #8",
"2 cm", "R > L", "a period of", "gas in the colon").
"""

import re
from collections.abc import Callable

from medunifier.data.reports.rules.vocabulary import ABBREVIATIONS

Replacement = str | Callable[[re.Match[str]], str]

# A dictated text ends with a spoken mark, or has a word that is only a mark, or a spoken colon after a header.
_DICTATED = re.compile(
    r"\b(?:period|full stop|comma)\W*$|\b(?:comma|semicolon|full stop|new paragraph)\b|(?-i:\bperiod [A-Z])"
    r"|\b(?:findings?|impression|indication|conclusion|opinion|comparison|history) colon\b",
    re.I,
)
_SPOKEN = tuple(
    (re.compile(rf"\s*\b{spoken}\b", re.I), mark)
    for spoken, mark in (
        (r"(?:(?<!of )(?<!\ba )(?<!the )(?<!this )(?<!time )period|full stop)", "."),
        (r"comma", ","), (r"semicolon", ";"), (r"(?<!\ba )(?<!the )(?:new|next) line|new paragraph", "\n"),
        (r"(?<!the )(?<!of )(?<!filled )(?<!sigmoid )(?<!transverse )(?<!ascending )(?<!descending )colon", ":"),
        (r"number (?:one|two|three|four|five|six|seven|eight)(?= [a-z])", "\n"),
    )
)  # fmt: skip

_DOTTED = re.compile(r"(?<![A-Za-z.])((?:[A-Za-z]\.){2,})(\s+[A-Z][a-z]|\s*$)?", re.M)
_SIDE = re.compile(r"(?<![A-Za-z.])(?:([Rr])|[Ll])\.(?=\s?[a-z])")

_SHORT = "|".join(re.escape(name) for name in sorted(ABBREVIATIONS, key=len, reverse=True))
_MONTH_NOT_VERB = r"(?! (?:be|also|well|not|have|represent|reflect|indicate|suggest|need|require|relate|simply)\b)"

_MONTHS = (
    "january|february|march|april|june|july|august|september|october|november|december"
    "|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)
_PREVIOUS = r"\1 previous"


def _ratio(decimals: str | None, percent: str | None) -> str:
    """Return whether a cardiothoracic ratio, its decimals or a percentage, is normal: at most one half."""
    return "increased" if float(f"0.{decimals or percent}") > 0.5 else "normal"


# (a text that occurs in every match, pattern, replacement), in order; the text is in lower case.
_REWRITES: tuple[tuple[str, re.Pattern[str], Replacement], ...] = (
    # "rib #", "#s of ribs 4-6", "# 7th rib"; not "tube #8", "#1", "## findings".
    (
        "#",
        re.compile(
            r"(?<!#)#(s?)(?=[\s?.,;:)a-z]|$|\d+(?:st|nd|rd|th)\b)"
            r"(?!s?\s*(?:findings?|impression|conclusion|history|indication|comparison|technique|report|exam\w*)\b)"
        ),
        r" fracture\1 ",
    ),
    # "Mild CM" is cardiomegaly, "2 cm" a length.
    (
        "cm",
        re.compile(
            r"(^|[\n.,;:]\s|\b(?:mild|moderate|marked|severe|gross|stable|unchanged|persistent|slight|massive|no|with)\s)"
            r"cm\b(?! (?:above|below|from|in)\b)",
            re.M,
        ),
        r"\1cardiomegaly",
    ),
    # The month.
    (
        "may",
        re.compile(
            rf"(?:(?<=\d )|(?<=\d(?:st|nd|rd|th) ))may\b{_MONTH_NOT_VERB}|(?<=\b(?:in|of|on) )may\b"
            r"|(?<=\bsince )may\b"
            r"|\bmay(?= (?:\d{1,2}(?:st|nd|rd|th)?|(?:19|20)\d\d)\b)"
        ),
        " ",
    ),
    # "Atelectasis > pneumonia", but not "right > left".
    (
        ">",
        re.compile(r"(?<=[a-z]{4})(?<!right)(?<!left)\s?>+\s?(?!left|right|lower|upper)(?=[a-z]{3})"),
        " favored over ",
    ),
    ("+", re.compile(r"(?<=[a-z])(?:\s*\(\++\)|\s*:\s*\++(?=\s*(?:$|[.,;\n])))", re.M), ": present"),
    ("-", re.compile(r"(?<=[a-z])(?:\s*\(-+\)|\s*:\s*-+(?=\s*(?:$|[.,;\n])))", re.M), ": none"),
    ("?", re.compile(r"(?:(?<=[\s(,;:/-])|^)\?+\s*(?=[a-z\d])"), " query "),
    ("?", re.compile(r"(?<=[a-z)])\s?\?+"), " queried."),
    ("", re.compile(rf"(?<![a-z/])(?:{_SHORT})(?![a-z/])"), lambda match: ABBREVIATIONS[match[0]]),
    # "Cardiothoracic ratio 0.62", "CTR = 48 %".
    (
        "r",
        re.compile(
            r"(\bctr|\bratio)((?: is| of| was| measures| at| approximately| about|\s?[:=~])*)"
            r"\s?(?:0?\.(\d{1,2})\b|(\d\d)(?:\.\d+)?\s?(?:%|percent\b))"
        ),
        lambda match: f"{match[1]} is {_ratio(match[3], match[4])} ",
    ),
    (
        "ht",
        re.compile(r"(^|[\n.;,]\s?)ht(?=\s(?:size|is|not|enlarged|normal|borderline|shadow|nl|big)\b)", re.M),
        r"\1heart",
    ),
    # "Not present in 2021", "not seen on 12/03/21", "not seen in March", "not there six months ago".
    (
        "20",
        re.compile(r"\b(in|on|at|from) (?:the )?(?:\d{1,2}[.-]\d{1,2}[.-])?20\d\d\b(?! ?(?:ml|cc|mm|hours|hrs|h)\b)"),
        _PREVIOUS,
    ),
    ("/", re.compile(r"\b(in|on|at|from) \d{1,2}/\d{1,2}/\d{2,4}\b"), _PREVIOUS),
    ("", re.compile(rf"\b(in|on) (?:\d{{1,2}} )?(?:{_MONTHS})(?: (?:of )?(?:19|20)\d\d)?\b"), _PREVIOUS),
    (
        " ago",
        re.compile(
            r"(?:\d+|\b(?:an?|one|two|three|four|five|six|several|some|few)) (?:day|week|month|year)s? ago\b"
        ),
        "previous",
    ),
    ("/", re.compile(r"(?<=[a-z])\s?/\s?(?=[a-z])"), " or "),
    ("-", re.compile(r"\s-+\s"), " : "),
)  # fmt: skip


def undictated(text: str) -> str:
    """Return a dictated text with punctuation marks in place of their names; any other text unchanged."""
    if not _DICTATED.search(text):
        return text
    for spoken, mark in _SPOKEN:
        text = spoken.sub(mark, text)
    return text


def undotted(text: str) -> str:
    """Remove full stops that end no sentence: "C.T. ratio" -> "CT ratio", "L. base" -> "left base"."""
    if "." not in text:
        return text
    text = _DOTTED.sub(lambda match: match[1].replace(".", "") + (match[2] and f".{match[2]}" or ""), text)
    return _SIDE.sub(lambda match: "right" if match[1] else "left", text)


def rewritten(text: str) -> str:
    """Return a lower-case text with signs and abbreviations in words."""
    for part, pattern, replacement in _REWRITES:
        if part in text:
            text = pattern.sub(replacement, text)
    return text
