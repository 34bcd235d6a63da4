"""Statements: short texts about a study whose labels are known, from its sentences and from its labels.

A statement is one or two sentences of the report, with the labels that the rule labeler finds in them, or a phrase
that states or denies one label, such as "There is no edema.".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import NEGATIVE, NO_FINDING, OBSERVATIONS, POSITIVE, SUPPORT_DEVICES
from medunifier.stage2_unified.model.vocabulary import UNCOND

if TYPE_CHECKING:  # it loads torch, for which --help need not wait
    from medunifier.stage2_unified.model.processing.report_codec import ReportCodec

UNKNOWN = -1
"""Value of a finding in a label vector of which nothing is known."""

PHRASES = (
    ("there is {finding}.", "there is no {finding}."),
    ("{finding} is present.", "{finding} is absent."),
    ("findings are consistent with {finding}.", "no evidence of {finding}."),
    ("{finding}.", "no {finding}."),
)
"""Templates that state and deny a finding."""
_NORMAL = ("the radiograph is normal.", "the radiograph is abnormal.")  # of No Finding
_SENTENCE_END = re.compile(r"(?<=[.;!?])\s+")


@dataclass(frozen=True)
class Statement:
    """A text with its labels.

    Attributes:
        ids: of the section's token and the text.
        labels: value of each of the 14 observations: 1, 0 or ``UNKNOWN``.
        general: the labels are all that it states, so that it is true of every image that has them. A sentence that
            states a finding also gives its side or size, of which the labels of other studies know nothing.
    """

    ids: list[int]
    labels: tuple[int, ...]
    general: bool


def label_vector(labels: Mapping[str, int], from_report: bool = False) -> tuple[int, ...]:
    """Return the value of each observation: 1, 0 or ``UNKNOWN`` (uncertain or not mentioned).

    A positive finding excludes No Finding. With ``from_report`` No Finding excludes the findings that the report does
    not mention; a data set's own No Finding covers only the findings that it was annotated for.
    """
    known = {name: value for name, value in labels.items() if value in (NEGATIVE, POSITIVE)}
    findings = [name for name in OBSERVATIONS if name not in (NO_FINDING, SUPPORT_DEVICES)]
    if any(known.get(name) == POSITIVE for name in findings):
        known[NO_FINDING] = NEGATIVE
    elif from_report and known.get(NO_FINDING) == POSITIVE:
        known = {name: NEGATIVE for name in findings if name not in labels} | known
    return tuple(known.get(name, UNKNOWN) for name in OBSERVATIONS)


def phrases(finding: str, value: int) -> tuple[str, ...]:
    """Return the sentences that state (value 1) or deny (value 0) an observation."""
    pairs = (_NORMAL,) if finding == NO_FINDING else PHRASES
    texts = (pair[1 - value].format(finding=finding.lower()) for pair in pairs)
    return tuple(text[0].upper() + text[1:] for text in texts)


def sentences(report: Mapping[str, str], sections: Sequence[str]) -> list[tuple[str, str]]:
    """Return (section, sentence) of the sentences of a report."""
    texts = ((section, report.get(section, "").strip()) for section in sections)
    return [(section, sentence) for section, text in texts if text for sentence in _SENTENCE_END.split(text)]


class StatementSampler:
    """Sample the statements of studies.

    Args:
        codec: of the reports.
        count: n statements of each study, half of them phrases where it has labels and sentences.
        width: ids of the longest statement; longer sentences are not used.
    """

    def __init__(self, codec: "ReportCodec", count: int, width: int) -> None:
        self.codec, self.count, self.width = codec, count, width
        self.empty = Statement([codec.vocabulary[UNCOND]], (UNKNOWN,) * len(OBSERVATIONS), general=False)

    def labels(self, info: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the label vector of a study's ``info`` in the shards."""
        return label_vector(info.get("labels", {}), from_report=self._has_text(info))

    def sample(self, info: Mapping[str, Any], generator: np.random.Generator) -> list[Statement]:
        """Return n statements that are true of the study; ``empty`` ones if it has neither labels nor sentences."""
        labels, first = self.labels(info), int(generator.integers(2))
        sentences = self._sentences(info, labels)
        statements = []
        for number in range(self.count):
            kinds = [self._phrase(labels, generator), self._from_sentences(sentences, generator)]
            preferred = kinds[(number + first) % 2]
            statements.append(preferred or kinds[0] or kinds[1] or self.empty)
        return statements

    def as_report(self, info: Mapping[str, Any], generator: np.random.Generator) -> dict[str, str]:
        """Return phrases of up to three labels in place of the report of a study without text."""
        labels = self.labels(info)
        texts = {self._phrase_text(labels, generator) for _ in range(3)} - {""}
        return {self.codec.sections[0]: " ".join(sorted(texts))}

    def _has_text(self, info: Mapping[str, Any]) -> bool:
        return any(info["report"].get(section, "").strip() for section in self.codec.sections)

    def _encoded(self, text: str, section: str) -> list[int]:
        return self.codec.encode({section: text})

    def _phrase_text(self, labels: Sequence[int], generator: np.random.Generator) -> str:
        """Return a phrase of a known label, in half of the cases of a positive one if there is any; "" if none is."""
        known = [number for number, value in enumerate(labels) if value != UNKNOWN]
        positive = [number for number in known if labels[number] == POSITIVE]
        if not known:
            return ""
        candidates = positive if positive and generator.random() < 0.5 else known
        number = candidates[int(generator.integers(len(candidates)))]
        texts = phrases(OBSERVATIONS[number], labels[number])
        return texts[int(generator.integers(len(texts)))]

    def _phrase(self, labels: Sequence[int], generator: np.random.Generator) -> Statement | None:
        text = self._phrase_text(labels, generator)
        section = self.codec.sections[int(generator.integers(len(self.codec.sections)))]
        ids = self._encoded(text, section)
        return Statement(ids, _phrase_labels()[text], general=True) if text and len(ids) <= self.width else None

    def _sentences(self, info: Mapping[str, Any], labels: Sequence[int]) -> list[tuple[str, str, tuple[int, ...]]]:
        """Return (section, sentence, label vector) of the sentences with labels, none against the study's."""
        found = []
        for section, sentence in sentences(info["report"], self.codec.sections):
            stated = sentence_labels(sentence)
            pairs = [(a, b) for a, b in zip(stated, labels, strict=True) if a != UNKNOWN]
            if pairs and all(b in (a, UNKNOWN) for a, b in pairs):
                found.append((section, sentence, stated))
        return found

    def _from_sentences(
        self, sentences: Sequence[tuple[str, str, tuple[int, ...]]], generator: np.random.Generator
    ) -> Statement | None:
        """Return one sentence or two of one section; None if there is none, or if it is too long."""
        if not sentences:
            return None
        first = int(generator.integers(len(sentences)))
        second = int(generator.integers(len(sentences)))
        one, two = sentences[min(first, second)], sentences[max(first, second)]
        if first != second and one[0] == two[0] and generator.random() < 0.5:
            merged = tuple(max(a, b) for a, b in zip(one[2], two[2], strict=True))
            ids = self._encoded(f"{one[1]} {two[1]}", one[0])
            if len(ids) <= self.width:
                return Statement(ids, merged, POSITIVE not in merged)
        section, text, labels = sentences[first]
        ids = self._encoded(text, section)
        return Statement(ids, labels, POSITIVE not in labels) if len(ids) <= self.width else None


@lru_cache(maxsize=100_000)
def sentence_labels(sentence: str) -> tuple[int, ...]:
    """Return the labels of one sentence. Alone, it says nothing of No Finding, which is about the whole image."""
    labels = {name: value for name, value in label_report(sentence).items() if name != NO_FINDING}
    return tuple(value if (value := labels.get(name, UNKNOWN)) in (0, 1) else UNKNOWN for name in OBSERVATIONS)


def every_phrase() -> tuple[str, ...]:
    """Return all sentences that state or deny an observation."""
    return tuple(_phrase_labels())


@lru_cache(maxsize=1)
def _phrase_labels() -> dict[str, tuple[int, ...]]:
    return {
        text: tuple(value if other == name else UNKNOWN for other in OBSERVATIONS)
        for name in OBSERVATIONS
        for value in (NEGATIVE, POSITIVE)
        for text in phrases(name, value)
    }
