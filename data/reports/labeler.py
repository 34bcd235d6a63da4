"""`label_report`: the 14 observations of a report by rules: mentions, denials, doubts and how far they reach.

After CheXpert's labeler (Irvin et al. 2019) and NegEx (Chapman et al. 2001), without a parser: one
regular expression finds all known phrases of a sentence in order, and one walk over them decides. The
phrases are in `data.phrases`. Runs offline; thousands of reports a second on one core.
"""

import re
from functools import lru_cache

from medunifier.data.reports import phrases
from medunifier.data.reports.observations import (
    NEGATIVE,
    NO_FINDING,
    POSITIVE,
    UNCERTAIN,
    in_order,
    is_no_finding,
    merge_mentions,
)
from medunifier.data.reports.sections import split_sections

# Not an observation: disease outside the 14 classes.
_OTHER = "other disease"

# An adjective belongs to the organ that follows it only if they stand close: "enlarged cardiac silhouette".
_ADJECTIVE_REACH = 24


def _actions() -> dict[str, tuple[tuple[str, str], ...]]:
    """Phrase -> what it does: (role, detail) pairs. A phrase may name two findings ("hydropneumothorax")."""
    table: dict[str, list[tuple[str, str]]] = {}

    def add(role: str, names: tuple[str, ...], detail: str = "") -> None:
        for name in names:
            table.setdefault(name, []).append((role, detail))

    for finding, names in phrases.MENTIONS.items():
        add("mention", names, finding)
    add("mention", phrases.OTHER_DISEASE, _OTHER)
    for organ, finding in phrases.ORGANS.items():
        add("organ", (organ,), finding)
    add("harmless", phrases.HARMLESS + phrases.NO_DENIAL)
    add("large", phrases.LARGE)
    add("normal", phrases.NORMAL)
    add("denies", phrases.DENIES)
    add("denied", phrases.DENIED)
    add("doubts", phrases.DOUBTS)
    add("doubted", phrases.DOUBTED)
    add("either", phrases.EITHER)
    add("ends", phrases.ENDS + tuple(f", {word}" for word in phrases.STATEMENT_OPENERS) + (";", ":"))
    return {name: tuple(actions) for name, actions in table.items()}


_STEM = "*"


def _pattern() -> re.Pattern[str]:
    def spelled(name: str) -> str:
        # A star or a mark at the end leaves the end open.
        return re.escape(name.removesuffix(_STEM)) + (r"\b" if name[-1].isalpha() else "")

    # Python's alternation takes the first that fits: long before short.
    names = sorted(_TABLE, key=len, reverse=True)
    marks = "|".join(spelled(name) for name in names if not name[0].isalpha())
    # Grouped by first letter, a word is compared with a dozen phrases and not with three hundred.
    letters = sorted({name[0] for name in names if name[0].isalpha()})
    words = "|".join(
        f"{letter}(?:{'|'.join(spelled(name)[1:] for name in names if name[0] == letter)})" for letter in letters
    )
    return re.compile(rf"\b(?:{words})|{marks}")


_TABLE = _actions()
_ACTIONS = {name.removesuffix(_STEM): actions for name, actions in _TABLE.items()}
_PHRASE = _pattern()
_OR = re.compile(r"(?<=[a-z])/(?=[a-z])")
_SENTENCE_END = re.compile(r"[.?!]+(?=\s|$|[a-z])|\n\s*\n")
_SPACES = re.compile(r"\s+")


def label_report(text: str) -> dict[str, int]:
    """The observations that a report states (1), denies (0) or doubts (-1), in the order of the table.

    Args:
        text: a report's findings and impression, or a whole report in MIMIC-CXR's form, of which only
            findings and impression are then read (an indication "rule out pneumonia" states nothing).

    Returns:
        {observation: 1 | 0 | -1}; what is not mentioned is absent. `No Finding` is 1 when nothing but
        support devices is stated or doubted, and else absent. Empty for an empty text, which says nothing.
    """
    sections = split_sections(text)
    chosen = [sections[name] for name in ("findings", "impression") if name in sections]
    sentences = split_sentences("\n\n".join(chosen) if chosen else text)
    mentions: dict[str, set[int]] = {}
    for sentence in sentences:
        for finding, value in _sentence_mentions(sentence):
            mentions.setdefault(finding, set()).add(value)
    if not sentences:
        return {}
    other = mentions.pop(_OTHER, {NEGATIVE})
    labels = {finding: merge_mentions(values) for finding, values in mentions.items()}
    if is_no_finding(labels) and other == {NEGATIVE}:
        labels[NO_FINDING] = POSITIVE
    return in_order(labels)


def split_sentences(text: str) -> list[str]:
    """Sentences in lower case on single spaces, slashes between words read as "or"; empty ones dropped."""
    text = _OR.sub(" or ", text.lower().replace("and/or", "or"))
    sentences = (_SPACES.sub(" ", sentence).strip() for sentence in _SENTENCE_END.split(text))
    return [sentence for sentence in sentences if any(letter.isalpha() for letter in sentence)]


@lru_cache(maxsize=50_000)  # sentences of reports repeat: "no pneumothorax", "the lungs are clear"
def _sentence_mentions(sentence: str) -> tuple[tuple[str, int], ...]:
    walk = _Walk()
    for match in _PHRASE.finditer(sentence):
        for role, detail in _ACTIONS[match[0]]:
            walk.meet(role, detail, match)
    return tuple((finding, value) for finding, value in walk.found)


class _Walk:
    """The state of a reading from left to right: what is denied or doubted here, which organ is spoken of."""

    def __init__(self) -> None:
        self.found: list[list] = []  # [finding, value]
        self.sense = POSITIVE
        self.clause_start = 0  # index into `found`: what a later "is not seen" looks back to
        self.organs: list[str] = []
        self.adjective: tuple[int, int] | None = None  # (value, where it ended)

    def meet(self, role: str, detail: str, match: re.Match[str]) -> None:
        if role == "mention":
            self._mention(detail, match[0])
        elif role == "organ":
            self._organ(detail, match.start())
        elif role in ("large", "normal"):
            self._size(role, match.end())
        elif role == "denies":
            self.sense = NEGATIVE
        elif role == "doubts":
            # "No opacity to suggest pneumonia" and "no suspicious opacity" deny; they do not doubt.
            if self.sense != NEGATIVE or "exclude" in match[0]:
                self.sense = UNCERTAIN
        elif role == "denied":
            if match[0] == "resolved" and len(self.found) == self.clause_start:
                self.sense = NEGATIVE  # "resolved effusion"
            self._look_back(NEGATIVE)
        elif role == "doubted":
            self._look_back(UNCERTAIN)
        elif role == "either":
            self._look_back(UNCERTAIN)
            self.sense = UNCERTAIN
        elif role == "ends":
            self.sense = POSITIVE
            if match[0] not in ("seen", "noted", "is noted", "are noted", "again", "also"):
                self.clause_start = len(self.found)

    def _mention(self, finding: str, phrase: str) -> None:
        self.found.append([finding, self.sense])
        if phrase in phrases.HINTS and self.sense != NEGATIVE:
            self.found.append([phrases.HINTS[phrase], UNCERTAIN])

    def _organ(self, finding: str, start: int) -> None:
        if self.adjective and start - self.adjective[1] <= _ADJECTIVE_REACH and not self.organs:
            self.found.append([finding, self.adjective[0]])
        else:
            self.organs.append(finding)

    def _size(self, role: str, end: int) -> None:
        if role == "normal":
            value = NEGATIVE if self.sense == POSITIVE else POSITIVE if self.sense == NEGATIVE else UNCERTAIN
        else:
            value = self.sense
        for finding in self.organs:
            self.found.append([finding, value])
        self.adjective = None if self.organs else (value, end)
        self.organs = []

    def _look_back(self, value: int) -> None:
        for mention in self.found[self.clause_start :]:
            mention[1] = value
