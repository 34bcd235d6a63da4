"""Split radiology reports into sections by MIMIC-CXR's rules, and select the training text.

The rules are those of MIT-LCP/mimic-cxr (txt/section_parser.py and txt/create_section_files.py), so the
sections equal `mimic_cxr_sectioned.csv` for all but the few dozen studies with manual corrections in that code.
A header is a newline, exactly one space, capitals (with space, comma, hyphen, slash and
parentheses), a colon and a white space character; on the first line of a text the newline is not needed. Text without
the leading space ("FINDINGS: ... IMPRESSION: ...") therefore has no headers: it is one section, `full report`.
"""

import re

_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
# On the first line the space may lack if another header follows: a text that was stripped.
_FIRST_HEADER = re.compile(r" ?([A-Z][A-Z ()/,-]*):\s")
_BLANK_LINE = "\n \n"
_SPACES = re.compile(r"\s+")

FULL_REPORT, PREAMBLE, LAST_PARAGRAPH = "full report", "preamble", "last_paragraph"

TEXT_CHOICES: tuple[str, ...] = ("findings", "impression", "findings+impression")

# {section: spellings in reports}. The misspellings occur in MIMIC-CXR. Upstream counts the truncated
# "ndication" as an impression; this is kept for parity.
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
_SECTION_OF = {spelling: name for name, spellings in SPELLINGS.items() for spelling in spellings}

_CONTAINED = ("impression", "findings", "history", "comparison", "addendum")

# Titles such as "CHEST, PA AND LATERAL:" are often used in place of "FINDINGS:".
_VIEW_PHRASES = (
    "chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral", "lateral and ap",
    "frontal and",
    "two views", "frontal view", "pa view", "ap view", "one view", "lateral view", "bone window",
    "frontal upright", "frontal semi-upright", "ribs", "pa and lat",
)  # fmt: skip


def section_name(header: str) -> str:
    """Return the section name of a header: " CONCLUSION" -> "impression". Unknown names are lower-cased."""
    name = header.strip().lower()
    if name in _SECTION_OF:
        return _SECTION_OF[name]
    for known in _CONTAINED:
        if known in name:
            return known
    return "findings" if any(phrase in name for phrase in _VIEW_PHRASES) else name


def _cut(text: str) -> list[tuple[str, str]]:
    """Return (name, body) pairs in text order; bodies keep their line breaks."""
    header = _HEADER.search(text)
    first = _FIRST_HEADER.match(text)
    if first and (header or text.startswith(" ")):
        header = first
    if header is None:
        return [(FULL_REPORT, text)]
    found = [(PREAMBLE, text[: header.start(1)])]
    while header is not None:
        start = header.end()
        # The next header must be on a later line: "IMPRESSION: ... NOTE: ..." on one line is one section.
        following = _HEADER.search(text, max(text.find("\n", start), start))
        found.append((section_name(header[1]), text[start : following.start() if following else len(text)]))
        header = following
    return found


def split_sections(text: str) -> dict[str, str]:
    """Split a report into sections.

    Returns:
        {section name: text}, stripped, line breaks kept. Names include `preamble` (text before the first
        header), `findings`, `impression`, `indication`, `comparison`, ...; only `full report` if there is no
        header; `last_paragraph` if there is neither findings nor impression: the last section after its first
        blank line. Of sections with the same name the last is returned. Empty findings and impressions are
        omitted, since an empty title "CHEST, PA AND LATERAL:" would otherwise replace the actual findings.
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
    """Replace every run of white space, including line breaks, by one space."""
    return _SPACES.sub(" ", text).strip()


def labelling_text(sections: dict[str, str]) -> str:
    """Return the text that MIMIC-CXR labels: impression, findings, last paragraph or comparison, whichever is first.

    "" if there is none of them.
    """
    for name in ("impression", "findings", LAST_PARAGRAPH, "comparison"):
        if name in sections:
            return sections[name]
    return ""


def training_text(sections: dict[str, str], choice: str = "findings+impression") -> str:
    """Return the training text of a report, on one line.

    Args:
        sections: the result of `split_sections`.
        choice: `findings`, `impression`, or `findings+impression` (both, or whichever exists).

    Returns:
        The text without headers; "" if the report lacks the chosen sections, so that the caller can count
        and skip such studies.

    Raises:
        ValueError: if the choice is not one of the three.
    """
    if choice not in TEXT_CHOICES:
        raise ValueError(f"text must be one of {', '.join(TEXT_CHOICES)}, got {choice!r}")
    return one_line(" ".join(sections.get(name, "") for name in choice.split("+")))
