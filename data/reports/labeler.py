"""`label_report`: rule-based extraction of the 14 observations: mentions, negation, uncertainty and their scope.

After CheXpert's labeler (Irvin et al. 2019) and NegEx (Chapman et al. 2001), without a parser: one
regular expression finds all known phrases of a sentence, and a single left-to-right pass assigns the labels. The
phrases are in `data.reports.phrases`. Runs offline; labels thousands of reports per second on one core.
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

# Disease outside the 14 observations.
_OTHER = "other disease"

# Maximum distance in characters between an adjective and the organ that it describes: "enlarged cardiac silhouette".
_MAX_ADJECTIVE_DISTANCE = 24


def _actions() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return {phrase: (role, detail) pairs}. A phrase may name two findings ("hydropneumothorax")."""
    table: dict[str, list[tuple[str, str]]] = {}

    def add(role: str, names: tuple[str, ...], detail: str = "") -> None:
        for name in names:
            table.setdefault(name, []).append((role, detail))

    for finding, names in phrases.MENTIONS.items():
        add("mention", names, finding)
    add("mention", phrases.OTHER_DISEASE, _OTHER)
    for organ, finding in phrases.ORGANS.items():
        add("organ", (organ,), finding)
    add("harmless", phrases.HARMLESS + phrases.PSEUDO_NEGATION)
    add("large", phrases.LARGE)
    add("normal", phrases.NORMAL)
    add("negation_before", phrases.NEGATION_BEFORE)
    add("negation_after", phrases.NEGATION_AFTER)
    add("uncertainty_before", phrases.UNCERTAINTY_BEFORE)
    add("uncertainty_after", phrases.UNCERTAINTY_AFTER)
    add("uncertainty_both", phrases.UNCERTAINTY_BOTH)
    add("scope_end", phrases.SCOPE_ENDS + tuple(f", {word}" for word in phrases.STATEMENT_OPENERS) + (";", ":"))
    return {name: tuple(actions) for name, actions in table.items()}


_STEM = "*"


def _pattern() -> re.Pattern[str]:
    def escaped(name: str) -> str:
        # After a star or punctuation no word boundary is required.
        return re.escape(name.removesuffix(_STEM)) + (r"\b" if name[-1].isalpha() else "")

    # Python's alternation takes the first alternative that matches, so longer phrases come first.
    names = sorted(_TABLE, key=len, reverse=True)
    punctuation = "|".join(escaped(name) for name in names if not name[0].isalpha())
    # Grouped by first letter, a word is compared with a dozen phrases instead of three hundred.
    letters = sorted({name[0] for name in names if name[0].isalpha()})
    words = "|".join(
        f"{letter}(?:{'|'.join(escaped(name)[1:] for name in names if name[0] == letter)})" for letter in letters
    )
    return re.compile(rf"\b(?:{words})|{punctuation}")


_TABLE = _actions()
_ACTIONS = {name.removesuffix(_STEM): actions for name, actions in _TABLE.items()}
_PHRASE = _pattern()
_OR = re.compile(r"(?<=[a-z])/(?=[a-z])")
_SENTENCE_END = re.compile(r"[.?!]+(?=\s|$|[a-z])|\n\s*\n")
_SPACES = re.compile(r"\s+")


def label_report(text: str) -> dict[str, int]:
    """Return the observations that a report mentions: positive (1), negative (0) or uncertain (-1), in table order.

    Args:
        text: a report's findings and impression, or a whole report in MIMIC-CXR's format, of which only
            findings and impression are used (an indication "rule out pneumonia" is not a finding).

    Returns:
        {observation: 1 | 0 | -1}; observations that are not mentioned are absent. `No Finding` is 1 if nothing but
        support devices is positive or uncertain, otherwise absent. Empty for an empty text.
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
    """Split a text into lower-case sentences; slashes between words become "or", white space a single space."""
    text = _OR.sub(" or ", text.lower().replace("and/or", "or"))
    sentences = (_SPACES.sub(" ", sentence).strip() for sentence in _SENTENCE_END.split(text))
    return [sentence for sentence in sentences if any(letter.isalpha() for letter in sentence)]


@lru_cache(maxsize=50_000)  # sentences recur across reports: "no pneumothorax", "the lungs are clear"
def _sentence_mentions(sentence: str) -> tuple[tuple[str, int], ...]:
    scanner = _SentenceScanner()
    for match in _PHRASE.finditer(sentence):
        for role, detail in _ACTIONS[match[0]]:
            scanner.process(role, detail, match)
    return tuple((finding, value) for finding, value in scanner.found)


class _SentenceScanner:
    """State of the left-to-right pass over a sentence: active negation or uncertainty, and organs mentioned."""

    def __init__(self) -> None:
        self.found: list[list] = []  # [finding, value]
        self.assertion = POSITIVE
        self.clause_start = 0  # index into `found` from which a later "is not seen" applies
        self.organs: list[str] = []
        self.adjective: tuple[int, int] | None = None  # (value, end offset)

    def process(self, role: str, detail: str, match: re.Match[str]) -> None:
        if role == "mention":
            self._mention(detail, match[0])
        elif role == "organ":
            self._organ(detail, match.start())
        elif role in ("large", "normal"):
            self._size(role, match.end())
        elif role == "negation_before":
            self.assertion = NEGATIVE
        elif role == "uncertainty_before":
            # "No opacity to suggest pneumonia" and "no suspicious opacity" are negative, not uncertain.
            if self.assertion != NEGATIVE or "exclude" in match[0]:
                self.assertion = UNCERTAIN
        elif role == "negation_after":
            if match[0] == "resolved" and len(self.found) == self.clause_start:
                self.assertion = NEGATIVE  # "resolved effusion"
            self._apply_to_clause(NEGATIVE)
        elif role == "uncertainty_after":
            self._apply_to_clause(UNCERTAIN)
        elif role == "uncertainty_both":
            self._apply_to_clause(UNCERTAIN)
            self.assertion = UNCERTAIN
        elif role == "scope_end":
            self.assertion = POSITIVE
            if match[0] not in ("seen", "noted", "is noted", "are noted", "again", "also"):
                self.clause_start = len(self.found)

    def _mention(self, finding: str, phrase: str) -> None:
        self.found.append([finding, self.assertion])
        if phrase in phrases.HINTS and self.assertion != NEGATIVE:
            self.found.append([phrases.HINTS[phrase], UNCERTAIN])

    def _organ(self, finding: str, start: int) -> None:
        if self.adjective and start - self.adjective[1] <= _MAX_ADJECTIVE_DISTANCE and not self.organs:
            self.found.append([finding, self.adjective[0]])
        else:
            self.organs.append(finding)

    def _size(self, role: str, end: int) -> None:
        if role == "normal":
            value = NEGATIVE if self.assertion == POSITIVE else POSITIVE if self.assertion == NEGATIVE else UNCERTAIN
        else:
            value = self.assertion
        for finding in self.organs:
            self.found.append([finding, value])
        self.adjective = None if self.organs else (value, end)
        self.organs = []

    def _apply_to_clause(self, value: int) -> None:
        for mention in self.found[self.clause_start :]:
            mention[1] = value
