"""Prompts for zero-shot classification: named prompt sets, or a JSON file with the sentences of each finding."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medunifier.data.reports.observations import FINDINGS, LEADERBOARD, NO_FINDING, OBSERVATIONS
from medunifier.shared.artifacts import read_json
from medunifier.shared.errors import UsageError, UserError, nearest
from medunifier.shared.files.input_files import MAX_CONFIG_BYTES, read_bounded
from medunifier.shared.report_page.notice import CARD_FINDINGS
from medunifier.stage2_unified.inference.report_text import check_labels, observations_of
from medunifier.stage2_unified.model.processing.statements import PHRASES

# Positive and negative prompt. CheXzero's (Tiu et al., 2022) is a bare name, which a model trained on few reports may
# know only within a sentence: on the demo's phantoms, whose reports never contain "No cardiomegaly.", it ranks in
# reverse.
PAIRS = {
    "sentence": PHRASES[0],
    "chexzero": ("{finding}.", "no {finding}."),
}

# BioViL (Boecking et al., 2022) for the RSNA pneumonia data set.
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

# Severity × finding × location, after GLoRIA (Huang et al., 2021), with our own wording.
SEVERITIES = ("", "mild ", "moderate ", "severe ")
LOCATIONS = {
    "Cardiomegaly": ("",),
    "Enlarged Cardiomediastinum": ("",),
    "Support Devices": ("",),
    "Edema": ("", " in both lungs", " at the lung bases"),
}
USUAL_LOCATIONS = ("", " on the right", " on the left", " on both sides")

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
    """Sentences that state and deny findings.

    Attributes:
        name: of the style or the file.
        combine: ``mean``: similarity to the normalised mean embedding (BioViL); ``max``: largest similarity (GLoRIA).
        prompts: finding -> (positive, negative) sentences; without negative ones there is only a similarity.
    """

    name: str
    combine: Literal["mean", "max"]
    prompts: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]

    def to_json(self) -> dict[str, Any]:
        """Return the content of a file that :func:`prompt_set` reads."""
        return {
            "name": self.name,
            "combine": self.combine,
            "prompts": {
                finding: {"positive": list(positive), "negative": list(negative)}
                for finding, (positive, negative) in self.prompts.items()
            },
        }


def findings_of(label_set: str) -> tuple[str, ...]:
    """Return the findings of a named label set or a comma-separated list.

    Raises:
        UserError: for a name that is neither a set nor one of the 14 observations.
    """
    if label_set in LABEL_SETS:
        return LABEL_SETS[label_set]
    names = tuple(name.strip() for name in label_set.split(","))
    unknown = [name for name in names if name not in OBSERVATIONS]
    if unknown:
        raise UserError(
            f"unknown label set {label_set!r}: use {', '.join(LABEL_SETS)}, or comma-separated names from: "
            f"{', '.join(OBSERVATIONS)}{nearest(unknown[0], (*LABEL_SETS, *OBSERVATIONS))}"
        )
    return names


def prompt_set(style: str, findings: Sequence[str]) -> PromptSet:
    """Return the prompts of a named style or a JSON file, restricted to ``findings``.

    A file is ``{"name", "combine": "mean" | "max", "prompts": {finding: {"positive": [sentences],
    "negative": [sentences]}}}``; "negative" may be absent or empty.

    Raises:
        UserError: for an unknown style, an invalid file, or a prompt set without any of the findings.
    """
    if style in PAIRS:
        prompts = PromptSet(style, "mean", {name: _pair(name, style) for name in findings if name != NO_FINDING})
    elif style == "biovil":
        prompts = PromptSet(style, "mean", {"Pneumonia": BIOVIL})
    elif style == "severity":
        prompts = PromptSet(style, "max", {name: (_composed(name), ()) for name in findings if name != NO_FINDING})
    elif style.endswith(".json"):
        prompts = _from_file(style)
    else:
        raise UserError(f"unknown prompt style {style!r}: use {', '.join(STYLES)}, or pass a FILE.json")
    known = {name: prompts.prompts[name] for name in findings if name in prompts.prompts}
    if not known:
        raise UserError(
            f"the prompts {style} cover {', '.join(prompts.prompts)}, none of the evaluated findings "
            f"({', '.join(findings)}). Choose other prompts, or another --label_set"
        )
    return PromptSet(prompts.name, prompts.combine, known)


def prompt_pair(finding: str, style: str) -> tuple[str, str]:
    """Return the positive and negative sentence: "There is edema.", "There is no edema."."""
    positive, negative = (template.format(finding=finding.lower()) for template in PAIRS[style])
    return positive[0].upper() + positive[1:], negative[0].upper() + negative[1:]


def _pair(finding: str, style: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    positive, negative = prompt_pair(finding, style)
    return (positive,), (negative,)


def _composed(finding: str) -> tuple[str, ...]:
    sentences = (
        f"{severity}{finding.lower()}{location}."
        for severity in SEVERITIES
        for location in LOCATIONS.get(finding, USUAL_LOCATIONS)
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
        valid = made.combine in ("mean", "max") and all(isinstance(s, str) and s.strip() for s in sentences)
        valid = valid and all(positive for positive, _ in prompts.values()) and bool(prompts)
    except (KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise UserError(
            f'{path} is not a prompt set: expected {{"combine": "mean" or "max", "prompts": {{finding: '
            '{"positive": [sentences], "negative": [sentences]}}}'
        )
    return made


def trained_findings(model: str | Path) -> tuple[str, ...]:
    """Return the findings that a model folder's card lists as those of its training data; () if it lists none."""
    try:
        card = read_bounded(Path(model) / "README.md", MAX_CONFIG_BYTES).decode(errors="replace")
    except OSError:
        return ()
    found = re.search(rf"^{CARD_FINDINGS}(.*)$", card, re.MULTILINE)
    listed = {name.strip() for name in found[1].split(",")} if found else set()
    return tuple(name for name in OBSERVATIONS if name in listed)


def untrained(names: Iterable[str], trained: Sequence[str]) -> list[str]:
    """Return the names that mean none of the findings that the model was trained on; [] if those are unknown.

    Names that mean no observation, as a prompt file may contain, are not returned.
    """
    known = {*trained, NO_FINDING}
    meant = {name: observations_of(name) for name in names} if trained else {}
    return [name for name, observations in meant.items() if observations and not known.intersection(observations)]


def chosen_prompts(prompts: str, labels: str) -> PromptSet:
    """Return the prompts of a style or a JSON file for a named label set or comma-separated names.

    Raises:
        UsageError: for an unknown style.
        UserError: for an invalid file, or one without any of the labels; for an unknown or misspelt label.
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
        raise UserError(f"no labels in {labels!r}: pass a set ({', '.join(LABEL_SETS)}) or comma-separated names")
    if not from_file:
        check_labels(findings, LABEL_SETS, "For any other finding, pass its sentences as --prompts FILE.json")
    made = prompt_set(prompts, findings)
    if from_file and labels not in LABEL_SETS:
        for name in findings:
            if name not in made.prompts:
                raise UserError(f"{prompts} has no prompts for {name!r}{nearest(name, _from_file(prompts).prompts)}")
    return made
