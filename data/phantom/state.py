"""Ground truth of a phantom study: the patient's anatomy, and the findings with side, size and location.

Everything is sampled from generators keyed by (seed, purpose, index), so a study is a pure function of
(seed, index): studies can be generated independently, in any order, by any process.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.random import Generator

Choice = TypeVar("Choice")
Side = Literal["right", "left"]
Zone = Literal["upper", "mid", "lower"]
Position = Literal["PA", "AP"]

SIDES: tuple[Side, ...] = ("right", "left")
"""Sides of the patient. The patient's right is on the left of the image."""

ZONES: tuple[Zone, ...] = ("upper", "mid", "lower")

# Studies are grouped in rounds of 20. Within a round every patient belongs to one split, and the ratio
# 80 : 10 : 10 is exact, however few rounds are generated.
ROUND = 20
_SEGMENTS: tuple[tuple[str, int], ...] = (("train", 8), ("validate", 2), ("train", 8), ("test", 2))
_MOST_VISITS = 3

_KEY_ROUND, _KEY_PATIENT, _KEY_VISIT = range(3)


@dataclass(frozen=True)
class Lesion:
    """A localized finding.

    `size` is 0 (small, mild), 1 (moderate) or 2 (large, severe). `zone` is None for findings
    without a zone (an effusion follows gravity).
    """

    side: Side
    size: int = 1
    zone: Zone | None = None


@dataclass(frozen=True)
class Anatomy:
    """Anatomy shared by all studies of a patient; lengths in half widths of the image."""

    chest: float
    """Half width of the inner rib cage."""
    heart_ratio: float
    """Cardiothoracic ratio in a PA view without cardiomegaly."""
    rib_phase: float
    rib_spacing: float
    shoulder: float
    knob: float
    """Radius of the aortic knob."""
    raised: Side | None
    """Side of an elevated hemidiaphragm."""
    texture: int
    """Seed of the patient's vessel pattern."""


@dataclass(frozen=True)
class State:
    """Ground truth of one study."""

    anatomy: Anatomy
    position: Position
    low_volume: bool
    heart: int
    """0 normal, 1 mild, 2 moderate, 3 severe cardiomegaly."""
    edema: int
    """0 none, 1 early, 2 frank pulmonary edema."""
    effusions: tuple[Lesion, ...] = ()
    pneumothorax: Lesion | None = None
    consolidation: Lesion | None = None
    opacity: Lesion | None = None
    nodule: Lesion | None = None
    atelectasis: tuple[Side, ...] = ()
    fracture: Side | None = None
    """Side of a clavicle fracture."""
    devices: tuple[str, ...] = ()
    """Support devices, from DEVICES."""

    @property
    def is_normal(self) -> bool:
        """Whether there are no findings; support devices do not count."""
        return not (
            self.heart or self.edema or self.effusions or self.pneumothorax or self.consolidation
            or self.opacity or self.nodule or self.atelectasis or self.fracture
        )  # fmt: skip


DEVICES = ("pacemaker", "endotracheal tube", "central line")


@dataclass(frozen=True)
class Slot:
    """Position of a study in the archive: its patient, the number of prior visits, and its split."""

    patient: int
    visit: int
    split: str


def slot(seed: int, index: int) -> Slot:
    """Return patient, visit and split of a study. Patients have one to three studies, all in one split."""
    number, offset = divmod(index, ROUND)
    rng = np.random.default_rng((seed, _KEY_ROUND, number))
    start = 0
    for split, length in _SEGMENTS:
        end = start + length
        while start < end:
            visits = min(int(rng.integers(1, _MOST_VISITS + 1)), end - start)
            if offset < start + visits:
                return Slot(number * ROUND + start, offset - start, split)
            start += visits
    raise AssertionError("the segments cover a round")


def study_state(seed: int, patient: int, visit: int, findings: tuple[str, ...]) -> State:
    """Return the state of a patient at a visit. Findings appear, resolve, grow and shrink between visits.

    Args:
        seed: seed of the archive.
        patient: index of the patient.
        visit: index of the visit, 0 for the first.
        findings: the subset of FINDINGS that may occur.
    """
    anatomy = _sample_anatomy(np.random.default_rng((seed, _KEY_PATIENT, patient)))
    state: State | None = None
    for number in range(visit + 1):
        rng = np.random.default_rng((seed, _KEY_VISIT, patient, number))
        fresh = _sample_state(anatomy, rng, findings)
        state = fresh if state is None else _follow_up(state, fresh, rng)
    assert state is not None  # noqa: S101 - narrows a type
    return state


def _sample_anatomy(rng: Generator) -> Anatomy:
    return Anatomy(
        chest=rng.uniform(0.69, 0.75),
        heart_ratio=rng.uniform(0.40, 0.46),
        rib_phase=rng.uniform(0.0, 1.0),
        rib_spacing=rng.uniform(0.150, 0.170),
        shoulder=rng.uniform(-0.03, 0.03),
        knob=rng.uniform(0.155, 0.175) if rng.random() < 0.25 else rng.uniform(0.075, 0.095),
        raised=_choose(rng, SIDES) if rng.random() < 0.15 else None,
        texture=int(rng.integers(2**31)),
    )


def has_tortuous_aorta(anatomy: Anatomy) -> bool:
    """Return whether the aortic knob is prominent; sampled radii leave a gap between 0.095 and 0.155."""
    return anatomy.knob > 0.12


def _choose(rng: Generator, choices: tuple[Choice, ...]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _size(rng: Generator) -> int:
    return int(rng.integers(3))


def _sample_state(anatomy: Anatomy, rng: Generator, findings: tuple[str, ...]) -> State:
    """Sample a state independent of prior visits: a quarter are normal, the others have one to three findings."""
    state = State(
        anatomy=anatomy,
        position="AP" if rng.random() < 0.4 else "PA",
        low_volume=bool(rng.random() < 0.2),
        heart=0,
        edema=0,
    )
    # Devices are more frequent in portable (AP) studies.
    if "devices" in findings and rng.random() < (0.35 if state.position == "AP" else 0.15):
        state = replace(state, devices=tuple(sorted({_choose(rng, DEVICES) for _ in range(2)})))
    if rng.random() < 0.25:
        return state
    kinds = [_KINDS[name] for name in _KINDS if name in findings]
    count = min(int(rng.choice((1, 2, 3), p=(0.35, 0.4, 0.25))), len(kinds))
    weights = np.array([weight for _, weight in kinds])
    for number in sorted(rng.choice(len(kinds), size=count, replace=False, p=weights / weights.sum())):
        state = kinds[number][0](state, rng)
    return state


def _heart(state: State, rng: Generator) -> State:
    return replace(state, heart=1 + _size(rng))


def _edema(state: State, rng: Generator) -> State:
    return replace(state, edema=int(rng.integers(1, 3)))


def _effusion(state: State, rng: Generator) -> State:
    sides = SIDES if rng.random() < 0.3 else (_choose(rng, SIDES),)
    size = _size(rng)  # the same for both sides: the report states "small bilateral pleural effusions"
    if state.heart:  # cardiomegaly hides a small effusion, and a large effusion hides cardiomegaly
        size = 1
    return replace(state, effusions=tuple(Lesion(side, size) for side in sides))


def _free_sides(state: State) -> tuple[Side, ...]:
    """Return the sides without fluid, where a pneumothorax or basal atelectasis can be distinguished."""
    wet = {lesion.side for lesion in state.effusions}
    return tuple(side for side in SIDES if side not in wet)


def _pneumothorax(state: State, rng: Generator) -> State:
    free = _free_sides(state)
    return replace(state, pneumothorax=Lesion(_choose(rng, free), _size(rng))) if free else state


def _free_zones(state: State) -> tuple[tuple[Side, Zone], ...]:
    """Return where a focal finding is visible: outside fluid, a collapsed lung, and other focal findings."""
    occupied = {(lesion.side, lesion.zone) for lesion in (state.consolidation, state.opacity, state.nodule) if lesion}
    blocked = {lesion.side for lesion in state.effusions if lesion.size == 2}
    if state.pneumothorax:
        blocked.add(state.pneumothorax.side)
    basal = {lesion.side for lesion in state.effusions} | set(state.atelectasis)
    if state.heart >= 2:  # the heart covers the left base
        basal.add("left")
    return tuple(
        (side, zone)
        for side in SIDES
        for zone in ZONES
        if (side, zone) not in occupied and side not in blocked and not (zone == "lower" and side in basal)
    )


def _focal(state: State, rng: Generator) -> Lesion | None:
    free = _free_zones(state)
    if not free:
        return None
    side, zone = free[int(rng.integers(len(free)))]
    return Lesion(side, _size(rng), zone)


def _consolidation(state: State, rng: Generator) -> State:
    return replace(state, consolidation=_focal(state, rng))


def _opacity(state: State, rng: Generator) -> State:
    return replace(state, opacity=_focal(state, rng))


def _nodule(state: State, rng: Generator) -> State:
    return replace(state, nodule=_focal(state, rng))


def _atelectasis(state: State, rng: Generator) -> State:
    focal = (state.consolidation, state.opacity, state.nodule)
    lower = {lesion.side for lesion in focal if lesion and lesion.zone == "lower"}
    air = {state.pneumothorax.side} if state.pneumothorax else set()
    free = tuple(side for side in _free_sides(state) if side not in lower | air)
    if not free:
        return state
    return replace(state, atelectasis=free if rng.random() < 0.3 else (_choose(rng, free),))


def _fracture(state: State, rng: Generator) -> State:
    return replace(state, fracture=_choose(rng, SIDES))


# {finding: (sampler, weight)} in the order of placement: findings that occupy a side precede those that need a
# free zone.
_KINDS: dict[str, tuple[Callable[[State, Generator], State], float]] = {
    "cardiomegaly": (_heart, 0.19),
    "edema": (_edema, 0.08),
    "effusion": (_effusion, 0.19),
    "pneumothorax": (_pneumothorax, 0.12),
    "consolidation": (_consolidation, 0.11),
    "opacity": (_opacity, 0.11),
    "nodule": (_nodule, 0.10),
    "atelectasis": (_atelectasis, 0.06),
    "fracture": (_fracture, 0.04),
}

FINDINGS: tuple[str, ...] = (*_KINDS, "devices")
"""Names of the findings that a phantom can include."""


def _follow_up(prior: State, fresh: State, rng: Generator) -> State:
    """Return the state at the next visit: a new image, in which each finding persists with probability 0.7.

    A persistent finding keeps side and zone; its size may change by one step. New findings are taken from a fresh
    state unless they collide with a persistent one.
    """

    def persists() -> bool:
        return bool(rng.random() < 0.7)

    def resized(size: int, low: int, high: int) -> int:
        return int(np.clip(size + rng.integers(-1, 2), low, high))

    state = replace(fresh, devices=prior.devices if persists() else fresh.devices)
    if prior.heart:  # a heart does not return to normal size between two studies
        state = replace(state, heart=resized(prior.heart, 1, 3))
    if prior.edema and persists():
        state = replace(state, edema=resized(prior.edema, 1, 2))
    if prior.fracture:
        state = replace(state, fracture=prior.fracture)
    if prior.effusions and persists():
        size = resized(prior.effusions[0].size, 0, 2)
        # Persistent fluid displaces findings of the fresh state on those sides.
        state = _without_focal(state)
        state = replace(
            state,
            effusions=tuple(replace(lesion, size=size) for lesion in prior.effusions),
            pneumothorax=None,
            atelectasis=(),
        )
    elif prior.nodule and persists():
        state = _without_focal(state)
        state = replace(state, effusions=(), pneumothorax=None, atelectasis=())
        state = replace(state, nodule=replace(prior.nodule, size=resized(prior.nodule.size, 0, 2)))
    return _keep_heart_visible(state)


def _keep_heart_visible(state: State) -> State:
    """Remove or resize findings that would hide the borders of a heart enlarged since the prior study."""
    if not state.heart:
        return state
    state = replace(state, effusions=tuple(replace(lesion, size=1) for lesion in state.effusions))
    if state.heart >= 2:
        focal = {"consolidation": state.consolidation, "opacity": state.opacity, "nodule": state.nodule}
        hidden = [
            name for name, lesion in focal.items() if lesion and (lesion.side, lesion.zone) == ("left", "lower")
        ]
        state = replace(state, **dict.fromkeys(hidden))  # type: ignore[arg-type]
    return state


def _without_focal(state: State) -> State:
    return replace(state, consolidation=None, opacity=None, nodule=None)
