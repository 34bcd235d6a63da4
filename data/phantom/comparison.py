"""Report phrases for changes since the prior study: new, unchanged, increased, resolved, uncertain."""

from typing import Any

from numpy.random import Generator

from medunifier.data.phantom.change import Change
from medunifier.data.phantom.state import SIDES

_COURSES = {
    "new": ("new since the prior study", "new from prior"),
    "unchanged": ("unchanged from prior", "stable since the prior study", "not significantly changed"),
    "increased": ("increased since the prior study", "increased from prior"),
    "decreased": ("decreased since the prior study", "decreased from prior"),
}

# Probability that a small finding which is new or has decreased is reported as uncertain.
_UNCERTAIN_PROBABILITY = 0.4

_RESOLVED_NOUNS = {
    "edema": ("Edema", "pulmonary edema"),
    "effusions": ("Pleural Effusion", "{} pleural effusion"),
    "pneumothorax": ("Pneumothorax", "{} pneumothorax"),
    "consolidation": ("Consolidation", "{} consolidation"),
    "opacity": ("Lung Opacity", "patchy {} opacities"),
    "nodule": ("Lung Lesion", "{} nodule"),
    "atelectasis": ("Atelectasis", "{} basilar atelectasis"),
}
"""{kind: (observation, its noun)}. Cardiomegaly and fractures never resolve."""


def add_comparison(
    finding: str, impression: str, change: Change, small: bool, rng: Generator
) -> tuple[str, str, bool]:
    """Return the sentence and the impression phrase of a finding with its change since the prior study.

    Args:
        finding: a complete sentence.
        impression: the phrase for the impression, without a full stop.
        change: the change of this finding.
        small: whether the finding has the smallest size. A small finding that is new or has decreased may be
            reported as uncertain.
        rng: selects the wording.

    Returns:
        Both texts, and whether they state the finding as uncertain.
    """
    if small and change.course in ("new", "decreased") and rng.random() < _UNCERTAIN_PROBABILITY:
        uncertain = f"possible {'new' if change.course == 'new' else 'residual'} {impression}"
        return f"{uncertain}.", uncertain, True
    if change.course == "partly new":
        course = brief = f"new on the {change.new_at[0]}"
    else:
        assert change.course is not None  # noqa: S101 - narrows a type
        wordings = _COURSES[change.course]
        course, brief = wordings[int(rng.integers(len(wordings)))], change.course
    return f"{finding.removesuffix('.')}, {course}.", f"{impression}, {brief}", False


def describe_resolved(kind: str, change: Change, rng: Generator) -> list[tuple[str, str, str]]:
    """Return (observation, sentence, impression phrase) for each resolved finding of a kind."""
    phrases = []
    for location in _location_words(change.resolved_at):
        name, noun = _RESOLVED_NOUNS[kind]
        noun = noun.format(location)
        if location == "bilateral" and kind == "effusions":
            noun += "s"
        singular = not noun.endswith("s") or noun.endswith("sis")
        wordings = (
            f"The {noun} {'has' if singular else 'have'} resolved.",
            f"Previously seen {noun} {'is' if singular else 'are'} no longer seen.",
            f"Resolution of the {noun}.",
        )
        sentence = wordings[int(rng.integers(len(wordings)))]
        phrases.append((name, sentence, f"{noun} {'has' if singular else 'have'} resolved"))
    return phrases


def _location_words(locations: tuple[Any, ...]) -> list[str]:
    """Return the text of each location; both sides together are "bilateral"."""
    if len(locations) == len(SIDES) and set(locations) == set(SIDES):
        return ["bilateral"]
    return [location if isinstance(location, str) else " ".join(location) for location in locations]
