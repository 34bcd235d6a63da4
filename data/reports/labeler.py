"""`label_report`: rule-based extraction of the 14 observations from a report.

After CheXpert's labeler (Irvin et al. 2019). `rules.scanner` finds what each sentence states, denies or doubts; this
file chooses the sentences and merges their mentions. Runs offline.
"""

import re
from typing import Literal

from medunifier.data.reports.observations import (
    NEGATIVE,
    NO_FINDING,
    POSITIVE,
    SUPPORT_DEVICES,
    UNCERTAIN,
    in_order,
    is_no_finding,
    merge_mentions,
)
from medunifier.data.reports.plain_sections import split_plain_sections
from medunifier.data.reports.rules.negation import BLUNTED, FAILURE, NORMAL, OTHER
from medunifier.data.reports.rules.normalize import undictated
from medunifier.data.reports.rules.scanner import sentence_mentions
from medunifier.data.reports.rules.sentences import split_sentences
from medunifier.data.reports.sections import FULL_REPORT, LAST_PARAGRAPH, PREAMBLE, split_sections

NoFindingRule = Literal["known", "chexpert"]

_FIRST_SENTENCE = re.compile(r"(?:\.\s+|\n\s*)(?=[A-Z?])")
_DAMAGE = ("\0", "\ufffd")  # of text read with the wrong encoding


def label_report(text: str, no_finding: NoFindingRule = "known") -> dict[str, int]:
    """Return the observations that a report mentions: positive (1), negative (0) or uncertain (-1), in table order.

    Args:
        text: a report's findings and impression, or a whole report, of which only these are used (an indication
            "rule out pneumonia" is not a finding). See `described_text`.
        no_finding: when `No Finding` is 1; it is absent otherwise. "known": every sentence is recognised as normal,
            a denial, a device or neutral, so that an unknown word excludes it. "chexpert": none of the other
            observations but support devices is positive or uncertain, as in chexpert-labeler, whose labels of
            MIMIC-CXR and CheXpert published figures use; as there, heart failure is also an uncertain Cardiomegaly.

    Returns:
        {observation: 1 | 0 | -1}; observations that are not mentioned are absent. Empty for an empty text.
    """
    sentences = split_sentences(described_text(undictated(text)))
    if not sentences:
        return {}
    mentions: dict[str, set[int]] = {}
    for sentence in sentences:
        for finding, value in sentence_mentions(sentence):
            mentions.setdefault(finding, set()).add(value)
    normal = bool(mentions.pop(NORMAL, None))
    other = mentions.pop(OTHER, set())
    if blunted := mentions.pop(BLUNTED, set()):
        mentions.setdefault("Pleural Effusion", {min(value, -value) for value in blunted})
        other |= blunted
    if mentions.pop(FAILURE, set()) - {NEGATIVE} and no_finding == "chexpert":
        mentions.setdefault("Cardiomegaly", set()).add(UNCERTAIN)
    labels = {finding: merge_mentions(values) for finding, values in mentions.items()}
    known = other <= {NEGATIVE} and not any(mark in text for mark in _DAMAGE)
    normal = normal or NEGATIVE in (*labels.values(), *other) or SUPPORT_DEVICES in labels
    if is_no_finding(labels) and (no_finding == "chexpert" or (known and normal)):
        labels[NO_FINDING] = POSITIVE
    return in_order(labels)


def described_text(text: str) -> str:
    """Return the part of a text that describes the image: findings and impression.

    Headers are those of MIMIC-CXR or, if there are none, of `plain_sections`. There, text before the first header and
    a last paragraph count unless both findings and impression exist. If none of these exists, what follows the first
    sentence of the last section counts: "Indication: cough. Clear lungs." A lone sentence counts whatever its header.
    """
    sections: dict[str, str] = dict(split_sections(text))
    kept: list[str] = [name for name in ("findings", "impression") if name in sections]
    if not kept:
        sections = split_plain_sections(text, strict=False)
        kept = [name for name in ("findings", "impression") if name in sections]
        if len(kept) < 2:
            kept = [name for name in (PREAMBLE, FULL_REPORT, LAST_PARAGRAPH) if name in sections] + kept
    if kept:
        return "\n\n".join(sections[name] for name in kept)
    after_first_sentence = _FIRST_SENTENCE.split(next(reversed(sections.values())), maxsplit=1)[1:]
    return "".join(after_first_sentence) or (text if len(sections) == 1 else "")
