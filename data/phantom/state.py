"""What is true of a phantom study: its patient's anatomy and the findings with side, size and place.

Everything is drawn from generators keyed by (seed, what, ordinal), so a study is a pure function of
(seed, index): any study can be made alone, in any order, by any process.
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
"""The patient's sides: the patient's right is on the left of the image."""

ZONES: tuple[Zone, ...] = ("upper", "mid", "lower")

# Studies come in rounds of twenty. Within a round every patient belongs to one split, and eighty, ten and
# ten per cent hold exactly, however few studies are made.
ROUND = 20
_SEGMENTS: tuple[tuple[str, int], ...] = (("train", 8), ("validate", 2), ("train", 8), ("test", 2))
_MOST_VISITS = 3

_KEY_ROUND, _KEY_PATIENT, _KEY_VISIT = range(3)


@dataclass(frozen=True)
class Lesion:
    """A finding that lies somewhere.

    `size` runs over three steps, 0 (small, mild), 1 (moderate), 2 (large, severe). `zone` is None where
    the finding has no zone (an effusion lies where gravity wants it).
    """

    side: Side
    size: int = 1
    zone: Zone | None = None


@dataclass(frozen=True)
class Anatomy:
    """What stays the same between the studies of a patient; lengths in half widths of the image."""

    chest: float
    """Half width of the inner rib cage."""
    heart_ratio: float
    """Cardiothoracic ratio on a PA film without cardiomegaly."""
    rib_phase: float
    rib_spacing: float
    shoulder: float
    knob: float
    """Radius of the aortic knob."""
    raised: Side | None
    """A hemidiaphragm that stands high."""
    texture: int
    """Key of the patient's own vessel pattern."""


@dataclass(frozen=True)
class State:
    """The truth of one study."""

    anatomy: Anatomy
    position: Position
    low_volume: bool
    heart: int
    """0 normal, 1 mild, 2 moderate, 3 severe cardiomegaly."""
    edema: int
    """0 none, 1 early, 2 frank pulmonary oedema."""
    effusions: tuple[Lesion, ...] = ()
    pneumothorax: Lesion | None = None
    consolidation: Lesion | None = None
    opacity: Lesion | None = None
    nodule: Lesion | None = None
    atelectasis: tuple[Side, ...] = ()
    fracture: Side | None = None
    """A clavicle."""
    devices: tuple[str, ...] = ()
    """Of DEVICES."""

    @property
    def is_normal(self) -> bool:
        """No finding but, perhaps, devices."""
        return not (
            self.heart or self.edema or self.effusions or self.pneumothorax or self.consolidation
            or self.opacity or self.nodule or self.atelectasis or self.fracture
        )  # fmt: skip


DEVICES = ("pacemaker", "endotracheal tube", "central line")


@dataclass(frozen=True)
class Slot:
    """Where study `index` stands: its patient, the visits before it, and its split."""

    patient: int
    visit: int
    split: str


def slot(seed: int, index: int) -> Slot:
    """Patient, visit and split of a study. Patients have one to three studies, all in one split."""
    number, place = divmod(index, ROUND)
    rng = np.random.default_rng((seed, _KEY_ROUND, number))
    start = 0
    for split, length in _SEGMENTS:
        end = start + length
        while start < end:
            visits = min(int(rng.integers(1, _MOST_VISITS + 1)), end - start)
            if place < start + visits:
                return Slot(number * ROUND + start, place - start, split)
            start += visits
    raise AssertionError("the segments cover a round")


def study_state(seed: int, patient: int, visit: int, findings: tuple[str, ...]) -> State:
    """The state of a patient at a visit (0 = first). Between visits findings come, go, grow and shrink.

    Args:
        seed, patient, visit: which.
        findings: those of FINDINGS that may occur.
    """
    anatomy = _anatomy(np.random.default_rng((seed, _KEY_PATIENT, patient)))
    state: State | None = None
    for number in range(visit + 1):
        rng = np.random.default_rng((seed, _KEY_VISIT, patient, number))
        fresh = _fresh(anatomy, rng, findings)
        state = fresh if state is None else _later(state, fresh, rng)
    assert state is not None
    return state


def _anatomy(rng: Generator) -> Anatomy:
    return Anatomy(
        chest=rng.uniform(0.69, 0.75),
        heart_ratio=rng.uniform(0.40, 0.46),
        rib_phase=rng.uniform(0.0, 1.0),
        rib_spacing=rng.uniform(0.150, 0.170),
        shoulder=rng.uniform(-0.03, 0.03),
        knob=rng.uniform(0.155, 0.175) if rng.random() < 0.25 else rng.uniform(0.075, 0.095),
        raised=_one(rng, SIDES) if rng.random() < 0.15 else None,
        texture=int(rng.integers(2**31)),
    )


def has_tortuous_aorta(anatomy: Anatomy) -> bool:
    """Whether the aortic knob stands out; the sizes drawn leave a gap between 0.095 and 0.155."""
    return anatomy.knob > 0.12


def _one(rng: Generator, choices: tuple[Choice, ...]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _size(rng: Generator) -> int:
    return int(rng.integers(3))


def _fresh(anatomy: Anatomy, rng: Generator, findings: tuple[str, ...]) -> State:
    """A state without a past: a quarter normal, the others with one to three findings."""
    state = State(
        anatomy=anatomy,
        position="AP" if rng.random() < 0.4 else "PA",
        low_volume=bool(rng.random() < 0.2),
        heart=0,
        edema=0,
    )
    # Devices belong to portable films of the sick, but not only.
    if "devices" in findings and rng.random() < (0.35 if state.position == "AP" else 0.15):
        state = replace(state, devices=tuple(sorted({_one(rng, DEVICES) for _ in range(2)})))
    if rng.random() < 0.25:
        return state
    kinds = [_KINDS[name] for name in _KINDS if name in findings]
    wanted = min(int(rng.choice((1, 2, 3), p=(0.35, 0.4, 0.25))), len(kinds))
    shares = np.array([share for _, share in kinds])
    for number in sorted(rng.choice(len(kinds), size=wanted, replace=False, p=shares / shares.sum())):
        state = kinds[number][0](state, rng)
    return state


def _heart(state: State, rng: Generator) -> State:
    return replace(state, heart=1 + _size(rng))


def _edema(state: State, rng: Generator) -> State:
    return replace(state, edema=int(rng.integers(1, 3)))


def _effusion(state: State, rng: Generator) -> State:
    sides = SIDES if rng.random() < 0.3 else (_one(rng, SIDES),)
    size = _size(rng)  # one size for both sides: the report says "small bilateral pleural effusions"
    if state.heart:  # a large heart hides a small effusion, and a large effusion the heart
        size = 1
    return replace(state, effusions=tuple(Lesion(side, size) for side in sides))


def _free_sides(state: State) -> tuple[Side, ...]:
    """Sides without fluid, on which air or a band at the base can be told apart from it."""
    wet = {lesion.side for lesion in state.effusions}
    return tuple(side for side in SIDES if side not in wet)


def _pneumothorax(state: State, rng: Generator) -> State:
    free = _free_sides(state)
    return replace(state, pneumothorax=Lesion(_one(rng, free), _size(rng))) if free else state


def _free_places(state: State) -> tuple[tuple[Side, Zone], ...]:
    """Where a focal finding can be seen: not in fluid, nor on a lung pushed aside by air, nor on another."""
    taken = {(lesion.side, lesion.zone) for lesion in (state.consolidation, state.opacity, state.nodule) if lesion}
    blocked = {lesion.side for lesion in state.effusions if lesion.size == 2}
    if state.pneumothorax:
        blocked.add(state.pneumothorax.side)
    basal = {lesion.side for lesion in state.effusions} | set(state.atelectasis)
    if state.heart >= 2:  # it covers the left base
        basal.add("left")
    return tuple(
        (side, zone)
        for side in SIDES
        for zone in ZONES
        if (side, zone) not in taken and side not in blocked and not (zone == "lower" and side in basal)
    )


def _focal(state: State, rng: Generator) -> Lesion | None:
    places = _free_places(state)
    if not places:
        return None
    side, zone = places[int(rng.integers(len(places)))]
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
    return replace(state, atelectasis=free if rng.random() < 0.3 else (_one(rng, free),))


def _fracture(state: State, rng: Generator) -> State:
    return replace(state, fracture=_one(rng, SIDES))


# In the order in which they are placed: what fills a side first, then what needs a free place.
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
"""What a phantom may show, by the names that a user chooses from."""


def _later(before: State, fresh: State, rng: Generator) -> State:
    """The next visit: the film is taken anew, each finding persists with probability 0.7 or makes way.

    What persists keeps side and zone; its size may move by one step. New findings are those of a fresh
    state, where they do not collide with what persisted.
    """

    def stays() -> bool:
        return bool(rng.random() < 0.7)

    def moved(size: int, low: int, high: int) -> int:
        return int(np.clip(size + rng.integers(-1, 2), low, high))

    state = replace(fresh, devices=before.devices if stays() else fresh.devices)
    if before.heart:  # a heart does not shrink to normal between two films
        state = replace(state, heart=moved(before.heart, 1, 3))
    if before.edema and stays():
        state = replace(state, edema=moved(before.edema, 1, 2))
    if before.fracture:
        state = replace(state, fracture=before.fracture)
    if before.effusions and stays():
        size = moved(before.effusions[0].size, 0, 2)
        # Old fluid pushes out what a fresh state put on those sides.
        state = _without_focal(state)
        state = replace(
            state,
            effusions=tuple(replace(lesion, size=size) for lesion in before.effusions),
            pneumothorax=None,
            atelectasis=(),
        )
    elif before.nodule and stays():
        state = _without_focal(state)
        state = replace(state, effusions=(), pneumothorax=None, atelectasis=())
        state = replace(state, nodule=replace(before.nodule, size=moved(before.nodule.size, 0, 2)))
    return _beside_the_heart(state)


def _beside_the_heart(state: State) -> State:
    """Gives way to a heart that was larger before than in the fresh state: its borders must stay in sight."""
    if not state.heart:
        return state
    state = replace(state, effusions=tuple(replace(lesion, size=1) for lesion in state.effusions))
    if state.heart >= 2:
        focal = {"consolidation": state.consolidation, "opacity": state.opacity, "nodule": state.nodule}
        behind = [
            name for name, lesion in focal.items() if lesion and (lesion.side, lesion.zone) == ("left", "lower")
        ]
        state = replace(state, **dict.fromkeys(behind))  # type: ignore[arg-type]
    return state


def _without_focal(state: State) -> State:
    return replace(state, consolidation=None, opacity=None, nodule=None)
