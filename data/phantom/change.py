"""What became of each finding between two visits of a patient, from their two states."""

from dataclasses import dataclass
from typing import Any, Literal

from medunifier.data.phantom.state import Lesion, State

Course = Literal["new", "partly new", "unchanged", "increased", "decreased"]


@dataclass(frozen=True)
class Change:
    """The course of one kind of finding."""

    course: Course | None
    """Of what is there now; None if nothing is."""
    new_at: tuple[Any, ...] = ()
    """Places that had none before."""
    resolved_at: tuple[Any, ...] = ()
    """Places that had it before and have none now."""


def changes(prior: State, state: State) -> dict[str, Change]:
    """{kind: its change}, the kinds by their names in `State`, those without a place under an empty one."""
    before, now = _places(prior), _places(state)
    return {kind: _change(before[kind], now[kind]) for kind in now}


def _places(state: State) -> dict[str, dict[Any, int]]:
    """{kind: {place: size}}: place is a side, a side with a zone, or "" where there is but one."""

    def focal(lesion: Lesion | None) -> dict[Any, int]:
        return {(lesion.side, lesion.zone): lesion.size} if lesion else {}

    return {
        "heart": {"": state.heart} if state.heart else {},
        "edema": {"": state.edema} if state.edema else {},
        "effusions": {lesion.side: lesion.size for lesion in state.effusions},
        "pneumothorax": {state.pneumothorax.side: state.pneumothorax.size} if state.pneumothorax else {},
        "consolidation": focal(state.consolidation),
        "opacity": focal(state.opacity),
        "nodule": focal(state.nodule),
        "atelectasis": dict.fromkeys(state.atelectasis, 0),
        "fracture": {state.fracture: 0} if state.fracture else {},
    }


def _change(before: dict[Any, int], now: dict[Any, int]) -> Change:
    shared = [place for place in now if place in before]
    new_at = tuple(place for place in now if place not in before)
    resolved_at = tuple(place for place in before if place not in now)
    course: Course | None
    if not now:
        course = None
    elif not shared:
        course = "new"
    elif new_at:
        course = "partly new"
    else:
        grown = sum(now[place] - before[place] for place in shared)
        course = "increased" if grown > 0 else "decreased" if grown < 0 else "unchanged"
    return Change(course, new_at, resolved_at)
