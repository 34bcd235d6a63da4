"""Change of each finding between a prior study and the current one, computed from their two states."""

from dataclasses import dataclass
from typing import Any, Literal

from medunifier.data.phantom.state import Lesion, State

Course = Literal["new", "partly new", "unchanged", "increased", "decreased"]


@dataclass(frozen=True)
class Change:
    """Interval change of one kind of finding."""

    course: Course | None
    """Course of the finding in the current study; None if it is absent."""
    new_at: tuple[Any, ...] = ()
    """Locations affected in the current study only."""
    resolved_at: tuple[Any, ...] = ()
    """Locations affected in the prior study only."""


def changes(prior: State, state: State) -> dict[str, Change]:
    """Return {kind: its change}. Kinds are named as in `State`; a finding without a location uses ""."""
    before, now = _locations(prior), _locations(state)
    return {kind: _change(before[kind], now[kind]) for kind in now}


def _locations(state: State) -> dict[str, dict[Any, int]]:
    """Return {kind: {location: size}}. A location is a side, a (side, zone) pair, or "" if there is only one."""

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
    shared = [location for location in now if location in before]
    new_at = tuple(location for location in now if location not in before)
    resolved_at = tuple(location for location in before if location not in now)
    course: Course | None
    if not now:
        course = None
    elif not shared:
        course = "new"
    elif new_at:
        course = "partly new"
    else:
        growth = sum(now[location] - before[location] for location in shared)
        course = "increased" if growth > 0 else "decreased" if growth < 0 else "unchanged"
    return Change(course, new_at, resolved_at)
