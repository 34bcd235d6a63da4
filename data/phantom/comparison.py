"""How a report tells what became of a finding since the prior film: new, unchanged, increased, resolved, in doubt."""

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

# How often a small finding that has just appeared, or has nearly gone, is told with doubt.
_DOUBT = 0.4

_GONE = {
    "edema": ("Edema", "pulmonary edema"),
    "effusions": ("Pleural Effusion", "{} pleural effusion"),
    "pneumothorax": ("Pneumothorax", "{} pneumothorax"),
    "consolidation": ("Consolidation", "{} consolidation"),
    "opacity": ("Lung Opacity", "patchy {} opacities"),
    "nodule": ("Lung Lesion", "{} nodule"),
    "atelectasis": ("Atelectasis", "{} basilar atelectasis"),
}
"""{kind: (observation, its noun)}. A heart stays large and a fracture stays seen."""


def compared(finding: str, impression: str, change: Change, small: bool, rng: Generator) -> tuple[str, str, bool]:
    """A finding's sentence and its words in the impression, with its course.

    Args:
        finding: a whole sentence.
        impression: the same in brief, without a full stop.
        change: the finding's.
        small: it is of the least size, so that it may be doubted when it comes or goes.

    Returns:
        Both texts, and whether they now doubt that the finding is there.
    """
    if small and change.course in ("new", "decreased") and rng.random() < _DOUBT:
        doubted = f"possible {'new' if change.course == 'new' else 'residual'} {impression}"
        return f"{doubted}.", doubted, True
    if change.course == "partly new":
        course = brief = f"new on the {change.new_at[0]}"
    else:
        assert change.course is not None
        wordings = _COURSES[change.course]
        course, brief = wordings[int(rng.integers(len(wordings)))], change.course
    return f"{finding.removesuffix('.')}, {course}.", f"{impression}, {brief}", False


def resolved(kind: str, change: Change, rng: Generator) -> list[tuple[str, str, str]]:
    """(observation, sentence, words of the impression) of what the prior film showed and this one does not."""
    told = []
    for where in _grouped(change.resolved_at):
        name, noun = _GONE[kind]
        noun = noun.format(where)
        if where == "bilateral" and kind == "effusions":
            noun += "s"
        one = not noun.endswith("s") or noun.endswith("sis")
        wordings = (
            f"The {noun} {'has' if one else 'have'} resolved.",
            f"Previously seen {noun} {'is' if one else 'are'} no longer seen.",
            f"Resolution of the {noun}.",
        )
        sentence = wordings[int(rng.integers(len(wordings)))]
        told.append((name, sentence, f"{noun} {'has' if one else 'have'} resolved"))
    return told


def _grouped(places: tuple[Any, ...]) -> list[str]:
    """Places in words; both sides are told at once."""
    if len(places) == len(SIDES) and set(places) == set(SIDES):
        return ["bilateral"]
    return [place if isinstance(place, str) else " ".join(place) for place in places]
