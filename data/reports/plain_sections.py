"""Split radiology reports that are not in MIMIC-CXR's format: headers in any case, without a leading space.

Designed to keep the clinical history out of the findings. Anything that looks like a header ends the previous
section, even in the middle of a line and with an unknown name; only names of organs, devices and observations
("LUNGS:", "Heart size:") continue the current section. An unknown section is therefore dropped rather than written.
"""

import re
from collections.abc import Iterator

from medunifier.data.reports.sections import FULL_REPORT, LAST_PARAGRAPH, PREAMBLE, SPELLINGS

_NAMES: dict[str, tuple[str, ...]] = {
    "findings": (
        "findings", "finding", "observations", "chest, two views", "radiographic findings", "report",
        "result", "results", "xr chest", "chest x-ray", "chest xray", "chest radiograph",
    ),
    "impression": (
        "impression", "impressions", "conclusion", "conclusions", "opinion", "interpretation",
        "findings and impression", "findings/impression", "findings/ impression", "impression and findings",
        "impression and recommendation", "impression and recommendations", "impression/recommendation",
        "impression/recommendations", "imp", "summary", "assessment",
    ),
    "history": (
        "history", "clinical history", "patient history", "medical history", "past medical history", "hx",
        "clinical information", "clinical info", "clinical data", "clinical details", "clinical summary", "clinical",
        "clinical question", "clinical impression", "clinical diagnosis", "diagnosis", "symptoms", "pfi",
    ),
    "indication": (
        "indication", "indications", "clinical indication", "reason", "reason for exam", "reason for examination",
        "reason for study", "reason for this examination", "reason for test", "reason for visit", "question",
    ),
    "comparison": ("comparison", "comparisons", "comparison exam", "comparison film", "reference exam", "priors"),
    "technique": ("technique", "procedure", "protocol", "views", "exposure"),
    "examination": ("examination", "exam", "study", "type of examination", "exam type"),
    "recommendations": ("recommendation", "recommendations"),
    "addendum": ("addendum",),
    "wet read": ("wet read", "wetread"),
}  # fmt: skip
_SECTION_OF = {spelling: name for name, spellings in _NAMES.items() for spelling in spellings} | {
    spelling: name
    for name in ("findings", "impression", "comparison")
    for spelling in SPELLINGS[name]
    if spelling != "ndication"  # an impression by MIMIC-CXR's rules, but a misspelling of "indication"
}

# Substrings of longer names ("HISTORY OF PRESENT ILLNESS", "Clinical history and findings"); private sections first.
_CONTAINED = (
    ("histor", "history"), ("clinical", "history"), ("diagnos", "history"), ("patient", "history"),
    ("indication", "indication"), ("reason", "indication"), ("request", "indication"),
    ("compar", "comparison"), ("techni", "technique"), ("procedure", "technique"), ("protocol", "technique"),
    ("exam", "examination"), ("addend", "addendum"), ("recommend", "recommendations"),
    ("impression", "impression"), ("conclusion", "impression"), ("finding", "findings"),
)  # fmt: skip

# A header that consists of these words only is a heading within a section.
_INSIDE = frozenset([
    "a", "and", "of", "the", "or", "in", "for", "with", "both", "bilateral", "left", "right", "upper", "lower",
    "middle", "lobe", "lobes", "zone", "zones", "base", "bases", "apex", "apices", "side", "size", "sided", "tip",
    "lung", "lungs", "pulmonary", "parenchyma", "airspace", "airspaces", "airway", "airways", "trachea", "bronchi",
    "heart", "cardiac", "silhouette", "cardiomediastinal", "cardiomediastinum", "mediastinum", "mediastinal",
    "contour", "contours", "hila", "hilar", "hilum", "aorta", "aortic", "vessels", "vasculature", "vascular",
    "vascularity", "pleura", "pleural", "space", "spaces", "effusion", "effusions", "pneumothorax", "pneumothoraces",
    "bone", "bones", "osseous", "skeletal", "skeleton", "musculoskeletal", "spine", "rib", "ribs", "clavicle",
    "clavicles", "soft", "tissue", "tissues", "chest", "wall", "thorax", "thoracic", "structures", "diaphragm",
    "hemidiaphragm", "hemidiaphragms", "costophrenic", "angle", "angles", "sulci", "abdomen", "abdominal", "neck",
    "breast", "breasts", "line", "lines", "tube", "tubes", "catheter", "catheters", "device", "devices", "support",
    "hardware", "pacemaker", "wires", "drain", "drains", "endotracheal", "tracheostomy", "nasogastric", "enteric",
    "et", "ng", "ett", "ngt", "picc", "central", "venous", "port", "opacity", "opacities", "consolidation", "edema",
    "atelectasis", "nodule", "nodules", "mass", "masses", "lesion", "lesions", "pneumonia", "fracture", "fractures",
    "cardiomegaly", "infiltrate", "infiltrates", "calcification", "calcifications", "scarring", "volume", "volumes",
    "inflation", "cavity", "differential", "includes", "include",
])  # fmt: skip

_MAX_WORDS, _MAX_LETTERS = 6, 60
_SENTENCE_END = re.compile(r"[.;!?>|]\s*|\\[nrt]|\t|\s{2,}")
_COLON = re.compile(r"(?:(?<!\d)[:：]|[:：](?!\d))(?!//)[*_]*")  # not that of 10:30 or of a URL
_DASH = re.compile(
    r"\s[-–—=>]+\s|(?<=\w)(?:[-–—=>]+\s|[.?;]\s+|\.{2,}|\t\s*|[;|]|[*_]{2,}\s)|[]>}](?=\s)"
    r"|(?<=[A-Z]{2})\s+(?=[A-Z]?[a-z])"  # "FINDINGS Clear lungs."
)
_LETTER, _NOT_EDGE = re.compile(r"[^\W\d_]"), re.compile(r"[^\W_]")
_BLANK_LINE = re.compile(r"\n\s*\n")


def split_plain_sections(text: str, strict: bool = True) -> dict[str, str]:
    """Return the sections of a report whose headers may be in any case, at the start of a line or of a sentence.

    Args:
        text: the report.
        strict: also end a section at a header with an unknown name. False for a text that is already one section.

    Returns:
        {section name: text}, stripped. Names are those of :func:`data.reports.sections.split_sections`, unknown ones
        in lower case. Sections with the same name are joined, empty sections omitted. Only `full report` if there is
        no header; `last_paragraph` if there is neither findings nor impression.
    """
    cuts = list(_headers(text, strict))
    if not cuts:
        return {FULL_REPORT: text.strip()}
    bodies = [(PREAMBLE, text[: cuts[0][0]])]
    ends = [begin for begin, _, _ in cuts[1:]] + [len(text)]
    bodies += [(name, text[begin:end]) for (_, begin, name), end in zip(cuts, ends, strict=True)]
    sections: dict[str, str] = {}
    for name, body in bodies:
        if body.strip():
            sections[name] = f"{sections[name]}\n{body.strip()}" if name in sections else body.strip()
    if not sections.keys() & {"findings", "impression"}:
        name, body = bodies[-1]
        paragraphs = _BLANK_LINE.split(body.strip(), maxsplit=1)
        if name != PREAMBLE and len(paragraphs) == 2:
            sections[name], sections[LAST_PARAGRAPH] = paragraphs
    return sections


def section_text(text: str, name: str) -> str:
    """Return the text of a section column, without other sections that it may contain."""
    sections = split_plain_sections(text, strict=False)
    kept = [sections[part] for part in (FULL_REPORT, PREAMBLE, name) if part in sections]
    return "\n".join(kept)


def _headers(text: str, strict: bool) -> Iterator[tuple[int, int, str]]:
    """Yield (start of the header, start of its body, section) in text order."""
    start, sentence_begins = 0, True
    for line in text.splitlines(keepends=True):
        for begin, end, name in _line_headers(line, sentence_begins, strict):
            yield start + begin, start + end, name
        start += len(line)
        sentence_begins = line.strip()[-1:] in ("", ".", ":", "!", "?")


def _line_headers(line: str, sentence_begins: bool, strict: bool) -> Iterator[tuple[int, int, str]]:
    before, after_colon = 0, False
    if header := _header_without_colon(line, sentence_begins):
        yield header
        before, after_colon = header[1], True
    for colon in _COLON.finditer(line, before):
        ends = [match.end() for match in _SENTENCE_END.finditer(line, before, colon.start())]
        begin = ends[-1] if ends else before
        segment = line[begin : colon.start()]
        # After another header a sentence may end without a full stop: "HISTORY: cough FINDINGS: clear".
        cut = None if after_colon and not ends else _name_at_start(segment, strict)
        cut = cut or _name_at_end(segment, strict)
        if cut is not None:
            yield begin + cut[0], colon.end(), cut[1]
        before, after_colon = colon.end(), True


def _header_without_colon(line: str, sentence_begins: bool) -> tuple[int, int, str] | None:
    """Match a known name alone on a line or before a delimiter, but not the last word of a wrapped sentence."""
    dash = _DASH.search(line)
    head = line[: dash.start()] if dash else line
    letter = _LETTER.search(head)
    if letter is None or not (letter[0].isupper() or sentence_begins) or head.rstrip()[-1] in ".,;":
        return None
    section = _SECTION_OF.get(_plain(head))
    return None if section is None else (0, dash.end() if dash else len(line), section)


def _plain(name: str) -> str:
    """Normalize a name: lower case, single spaces, no leading digits or punctuation, no trailing punctuation."""
    first, last = _LETTER.search(name), _NOT_EDGE.search(name[::-1])
    if first is None or last is None:
        return ""
    return " ".join(name[first.start() : len(name) - last.start()].lower().split())


def _name_at_start(segment: str, strict: bool) -> tuple[int, str] | None:
    """Return (0, section) if the whole segment is a header that begins a section."""
    name = _plain(segment)
    words = name.split()
    if not words or len(words) > _MAX_WORDS or len(name) > _MAX_LETTERS:
        return None
    section = _SECTION_OF.get(name) or next((means for part, means in _CONTAINED if part in name), None)
    if section is None and strict and not all(word in _INSIDE for word in re.findall(r"[^\W\d_]+", name)):
        section = name
    return None if section is None else (0, section)


def _name_at_end(segment: str, strict: bool) -> tuple[int, str] | None:
    """Return (offset, section) if the segment ends with a known name, or with capitals."""
    rests = [(word.start(), segment[word.start() :]) for word in list(re.finditer(r"\S+", segment))[-_MAX_WORDS:]]
    for start, rest in rests:
        if name := _SECTION_OF.get(_plain(rest)):
            return start, name
    for start, rest in rests:
        if rest.isupper() and len(_plain(rest)) > 2 and (cut := _name_at_start(rest, strict)):
            return start, cut[1]
    return None
