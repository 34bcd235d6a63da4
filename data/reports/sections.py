"""Sections of a radiology report by the rules of MIMIC-CXR, and the choice of the text to train on.

The rules are those of MIT-LCP/mimic-cxr (txt/section_parser.py and txt/create_section_files.py), so that
what is cut here equals `mimic_cxr_sectioned.csv` for all but the few dozen studies which that code treats
by hand. A header is a newline, exactly one space, capitals (with space, comma, hyphen, slash and
parentheses), a colon and a white space character. So in text without the leading space
("FINDINGS: ... IMPRESSION: ...") nothing is a header: the whole text is one section, `full report`.
"""

import re

_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_BLANK_LINE = "\n \n"
_SPACES = re.compile(r"\s+")

FULL_REPORT, PREAMBLE, LAST_PARAGRAPH = "full report", "preamble", "last_paragraph"

TEXT_CHOICES: tuple[str, ...] = ("findings", "impression", "findings+impression")

# What radiologists type, by what is meant. Spelling mistakes are those met in MIMIC-CXR; that the
# clipped "ndication" counts as an impression is upstream's doing, kept for parity.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "comparison": (
        "comparisons", "comparison exam", "comparison film", "reference exam",
        "comparision", "comparsion", "comparrison", "comparisions",
    ),
    "history": ("clinical history", "clinical information", "patient history", "pfi"),
    "indication": ("reason for exam", "reason for examination", "clinical indication", "idication"),
    "impression": (
        "conclusion", "findings and impression", "findings/impression", "findings/ impression",
        "impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion",
        "mpression", "impession", "ndication",
    ),
    "findings": (
        "chest, two views", "finding", "findins", "findindgs", "findgings", "findngs", "findnings",
        "finidngs",
    ),
    "examination": ("exam", "type of examination"),
    "wet read": ("wetread",),
    "recommendations": ("recommendation",),
}  # fmt: skip
_MEANT = {spelling: name for name, spellings in SPELLINGS.items() for spelling in spellings}

_CONTAINED = ("impression", "findings", "history", "comparison", "addendum")

# Titles such as "CHEST, PA AND LATERAL:" often stand where "FINDINGS:" should.
_VIEW_PHRASES = (
    "chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral", "lateral and ap",
    "frontal and",
    "two views", "frontal view", "pa view", "ap view", "one view", "lateral view", "bone window",
    "frontal upright", "frontal semi-upright", "ribs", "pa and lat",
)  # fmt: skip


def section_name(header: str) -> str:
    """The section that a header means: " CONCLUSION" -> "impression". Unknown names stay, in lower case."""
    name = header.strip().lower()
    if name in _MEANT:
        return _MEANT[name]
    for known in _CONTAINED:
        if known in name:
            return known
    return "findings" if any(phrase in name for phrase in _VIEW_PHRASES) else name


def _cut(text: str) -> list[tuple[str, str]]:
    """(name, body) in the order of the text; bodies keep their line breaks."""
    header = _HEADER.search(text)
    if header is None:
        return [(FULL_REPORT, text)]
    found = [(PREAMBLE, text[: header.start(1)])]
    while header is not None:
        start = header.end()
        # Not before the next line: "IMPRESSION: ... NOTE: ..." on one line is one section.
        following = _HEADER.search(text, max(text.find("\n", start), start))
        found.append((section_name(header[1]), text[start : following.start() if following else len(text)]))
        header = following
    return found


def split_sections(text: str) -> dict[str, str]:
    """Cuts a report into sections.

    Returns:
        Section name -> text, outer white space removed, line breaks kept. Among the names are `preamble`
        (what precedes the first header), `findings`, `impression`, `indication`, `comparison`, ...;
        `full report` alone where there is no header; `last_paragraph` where neither findings nor
        impression is left: the last section after its first blank line. Of sections with one name the last
        counts. Empty findings and impressions are absent, since a bare title "CHEST, PA AND LATERAL:"
        would otherwise stand before the real findings.
    """
    parts = [(name, body) for name, body in _cut(text) if name not in ("findings", "impression") or body.strip()]
    names = {name for name, _ in parts}
    if not names & {"findings", "impression"}:
        name, body = parts[-1]
        head, blank, rest = body.partition(_BLANK_LINE)
        if blank:
            parts[-1:] = [(name, head), (LAST_PARAGRAPH, rest)]
    return {name: body.strip() for name, body in parts}


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks included, as one space."""
    return _SPACES.sub(" ", text).strip()


def labelling_text(sections: dict[str, str]) -> str:
    """MIMIC-CXR's text for labelling: impression, else findings, else last paragraph, else comparison, else ""."""
    for name in ("impression", "findings", LAST_PARAGRAPH, "comparison"):
        if name in sections:
            return sections[name]
    return ""


def training_text(sections: dict[str, str], choice: str = "findings+impression") -> str:
    """The text that a model learns, on one line.

    Args:
        sections: of `split_sections`.
        choice: `findings`, `impression`, or `findings+impression` (both, or the one that there is).

    Returns:
        The text without headers; "" where the report lacks what was chosen, so that the caller can count
        and leave out such studies.

    Raises:
        ValueError: if the choice is none of the three.
    """
    if choice not in TEXT_CHOICES:
        raise ValueError(f"text must be one of {', '.join(TEXT_CHOICES)}, got {choice!r}")
    return one_line(" ".join(sections.get(name, "") for name in choice.split("+")))
