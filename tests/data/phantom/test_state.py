"""Phantom states: splits, compatible findings, and persistence between visits."""

from collections import Counter, defaultdict

import pytest

from medunifier.data.phantom.rendering.anatomy import frame
from medunifier.data.phantom.state import FINDINGS, ROUND, State, slot, study_state

COUNT = 1200


@pytest.fixture(scope="module")
def states() -> list[State]:
    slots = (slot(0, index) for index in range(COUNT))
    return [study_state(0, entry.patient, entry.visit, FINDINGS) for entry in slots]


def test_splits_are_by_patient_and_exact() -> None:
    slots = [slot(3, index) for index in range(COUNT)]
    assert Counter(entry.split for entry in slots) == {
        "train": 0.8 * COUNT,
        "validate": 0.1 * COUNT,
        "test": 0.1 * COUNT,
    }
    splits, visits = defaultdict(set), defaultdict(list)
    for entry in slots:
        splits[entry.patient].add(entry.split)
        visits[entry.patient].append(entry.visit)
    assert all(len(found) == 1 for found in splits.values())
    assert all(found == list(range(len(found))) for found in visits.values())
    assert {len(found) for found in visits.values()} == {1, 2, 3}


def test_every_round_contains_all_splits() -> None:
    assert {slot(9, index).split for index in range(ROUND)} == {"train", "validate", "test"}


def test_cardiothoracic_ratios_of_normal_and_enlarged_hearts_are_separated(states: list[State]) -> None:
    normal = [frame(state).ratio() for state in states if not state.heart]
    enlarged = [frame(state).ratio() for state in states if state.heart]
    assert max(normal) < 0.50 and min(enlarged) > 0.56


def test_findings_that_would_hide_each_other_do_not_occur_together(states: list[State]) -> None:
    for state in states:
        wet = {lesion.side for lesion in state.effusions}
        focal = [lesion for lesion in (state.consolidation, state.opacity, state.nodule) if lesion]
        assert len({(lesion.side, lesion.zone) for lesion in focal}) == len(focal)
        assert not (state.pneumothorax and state.pneumothorax.side in wet)
        assert not wet & set(state.atelectasis)
        for lesion in focal:
            assert not (lesion.zone == "lower" and lesion.side in wet | set(state.atelectasis))
            assert not (state.pneumothorax and state.pneumothorax.side == lesion.side)
        if state.heart and state.effusions:
            assert {lesion.size for lesion in state.effusions} == {1}


def test_every_finding_and_side_occurs_and_some_states_are_normal(states: list[State]) -> None:
    found = Counter()
    for state in states:
        found["normal"] += state.is_normal
        for name in ("effusions", "pneumothorax", "consolidation", "opacity", "nodule", "fracture", "atelectasis"):
            for side in ("right", "left"):
                found[f"{name} {side}"] += side in str(getattr(state, name))
    assert 0.12 < found["normal"] / COUNT < 0.35
    assert all(count > 0.02 * COUNT for count in found.values()), found


def test_later_visits_keep_the_anatomy_and_most_findings() -> None:
    kept = total = 0
    for patient in range(0, 4000, ROUND):
        before, after = (study_state(1, patient, visit, FINDINGS) for visit in (0, 1))
        assert before.anatomy == after.anatomy
        assert bool(after.heart) >= bool(before.heart)
        if before.effusions:
            total += 1
            kept += {x.side for x in before.effusions} == {x.side for x in after.effusions}
    assert total > 20 and 0.5 < kept / total < 0.95
