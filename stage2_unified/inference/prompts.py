"""Prompts for zero-shot classification: sets by name, or a file that says which sentences stand for what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medunifier.data.reports.observations import LEADERBOARD, NO_FINDING, OBSERVATIONS
from medunifier.shared.artifacts import read_json
from medunifier.shared.errors import UsageError, UserError

FINDINGS = tuple(name for name in OBSERVATIONS if name != NO_FINDING)

# A statement and its denial. CheXzero's (Tiu et al., 2022) is a bare name, which a model of few reports may know
# only within a sentence: on the demo's phantoms, whose reports never say "No cardiomegaly.", it ranks upside down.
PAIRS = {
    "sentence": ("there is {finding}.", "there is no {finding}."),
    "chexzero": ("{finding}.", "no {finding}."),
}

# BioViL's (Boecking et al., 2022) for the RSNA pneumonia set.
BIOVIL = (
    (
        "Findings consistent with pneumonia",
        "Findings suggesting pneumonia",
        "This opacity can represent pneumonia",
        "Findings are most compatible with pneumonia",
    ),
    (
        "There is no pneumonia",
        "No evidence of pneumonia",
        "No evidence of acute pneumonia",
        "No signs of pneumonia",
    ),
)

# Severity × finding × place, the form of GLoRIA's (Huang et al., 2021); the words are ours.
SEVERITIES = ("", "mild ", "moderate ", "severe ")
PLACES = {
    "Cardiomegaly": ("",),
    "Enlarged Cardiomediastinum": ("",),
    "Support Devices": ("",),
    "Edema": ("", " in both lungs", " at the lung bases"),
}
USUAL_PLACES = ("", " on the right", " on the left", " on both sides")

LABEL_SETS: dict[str, tuple[str, ...]] = {
    "all": FINDINGS,
    "chexpert5": LEADERBOARD,
    "chexpert8": ("Atelectasis", "Cardiomegaly", "Edema", "Fracture", "Pleural Effusion", "Pneumonia",
                  "Pneumothorax", NO_FINDING),
    "medunifier5": ("Atelectasis", "Cardiomegaly", "Edema", "Pneumonia", "Pleural Effusion"),
    "rsna": ("Pneumonia",),
}  # fmt: skip
"""Label sets of published protocols. MedUnifier's five have Pneumonia in place of Consolidation."""

STYLES = (*PAIRS, "biovil", "severity")


@dataclass(frozen=True)
class PromptSet:
    """Sentences that stand for findings.

    Attributes:
        name: of the style, or the file's.
        combine: ``mean``: the embeddings' mean, then its norm (BioViL); ``max``: the largest similarity (GLoRIA).
        prompts: finding -> (statements, denials); without denials the score is the statements' alone.
    """

    name: str
    combine: Literal["mean", "max"]
    prompts: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]

    def to_json(self) -> dict[str, Any]:
        """What :func:`prompt_set` reads back."""
        return {
            "name": self.name,
            "combine": self.combine,
            "prompts": {
                finding: {"positive": list(positive), "negative": list(negative)}
                for finding, (positive, negative) in self.prompts.items()
            },
        }


def findings_of(label_set: str) -> tuple[str, ...]:
    """The findings of a set by name, or of a list with commas.

    Raises:
        UserError: for a name that is neither a set nor one of the 14 observations.
    """
    if label_set in LABEL_SETS:
        return LABEL_SETS[label_set]
    names = tuple(name.strip() for name in label_set.split(","))
    unknown = [name for name in names if name not in OBSERVATIONS]
    if unknown:
        raise UserError(
            f"unknown label set {label_set!r}: use {', '.join(LABEL_SETS)}, or names with commas from: "
            f"{', '.join(OBSERVATIONS)}"
        )
    return names


def prompt_set(style: str, findings: Sequence[str]) -> PromptSet:
    """A set by the name of its style, for the findings that it knows; or one from a JSON file.

    A file is ``{"name", "combine": "mean" | "max", "prompts": {finding: {"positive": [sentences],
    "negative": [sentences]}}}``; "negative" may be absent or empty.

    Raises:
        UserError: for an unknown style or a file that is no prompt set, or if it has none of the findings.
    """
    if style in PAIRS:
        made = PromptSet(style, "mean", {name: _pair(name, style) for name in findings if name != NO_FINDING})
    elif style == "biovil":
        made = PromptSet(style, "mean", {"Pneumonia": BIOVIL})
    elif style == "severity":
        made = PromptSet(style, "max", {name: (_composed(name), ()) for name in findings if name != NO_FINDING})
    elif style.endswith(".json"):
        made = _from_file(style)
    else:
        raise UserError(f"unknown prompt style {style!r}: use {', '.join(STYLES)}, or name a FILE.json")
    known = {name: made.prompts[name] for name in findings if name in made.prompts}
    if not known:
        raise UserError(
            f"the prompts {style} speak of {', '.join(made.prompts)}, of none of the findings judged "
            f"({', '.join(findings)}): choose others, or another --label_set"
        )
    return PromptSet(made.name, made.combine, known)


def prompt_pair(finding: str, style: str) -> tuple[str, str]:
    """The statement and its denial in a report's spelling: "There is edema.", "There is no edema."."""
    positive, negative = (template.format(finding=finding.lower()) for template in PAIRS[style])
    return positive[0].upper() + positive[1:], negative[0].upper() + negative[1:]


def _pair(finding: str, style: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    positive, negative = prompt_pair(finding, style)
    return (positive,), (negative,)


def _composed(finding: str) -> tuple[str, ...]:
    sentences = (
        f"{severity}{finding.lower()}{place}."
        for severity in SEVERITIES
        for place in PLACES.get(finding, USUAL_PLACES)
    )
    return tuple(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _from_file(path: str) -> PromptSet:
    content = read_json(path, "a prompt set")
    try:
        prompts = {
            finding: (tuple(row["positive"]), tuple(row.get("negative", ())))
            for finding, row in content["prompts"].items()
        }
        made = PromptSet(str(content.get("name", Path(path).stem)), content.get("combine", "mean"), prompts)
        sentences = [sentence for sides in prompts.values() for side in sides for sentence in side]
        right = made.combine in ("mean", "max") and all(isinstance(s, str) and s.strip() for s in sentences)
        right = right and all(positive for positive, _ in prompts.values()) and bool(prompts)
    except (KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise UserError(
            f'{path} is no prompt set: expected {{"combine": "mean" or "max", "prompts": {{finding: '
            '{"positive": [sentences], "negative": [sentences]}}}'
        )
    return made


def chosen_prompts(prompts: str, labels: str) -> PromptSet:
    """The sentences of a style, or of a file, for a label set by name or any names with commas.

    Raises:
        UsageError: for an unknown style.
        UserError: for a file that is no prompt set, or has none of the labels.
    """
    from_file = prompts.endswith(".json")
    if not from_file and prompts not in STYLES:
        raise UsageError(f"prompts must be {', '.join(STYLES)} or a FILE.json, got {prompts!r}")
    if from_file and labels == "all":
        content = read_json(prompts, "a prompt set")
        findings = tuple(content.get("prompts", ())) if isinstance(content, dict) else ()
    else:
        findings = LABEL_SETS.get(labels) or tuple(name.strip() for name in labels.split(",") if name.strip())
    if not findings:
        raise UserError(f"no labels in {labels!r}: give a set ({', '.join(LABEL_SETS)}) or names with commas")
    return prompt_set(prompts, findings)
