"""The label table: order, merging of mentions, and No Finding."""

from itertools import product

from medunifier.data.reports.observations import LEADERBOARD, OBSERVATIONS, in_order, is_no_finding, merge_mentions


def test_observations_are_in_chexbert_order() -> None:
    assert len(OBSERVATIONS) == len(set(OBSERVATIONS)) == 14
    assert OBSERVATIONS[0] == "Enlarged Cardiomediastinum" and OBSERVATIONS[-1] == "No Finding"
    assert set(LEADERBOARD) < set(OBSERVATIONS) and len(LEADERBOARD) == 5


def test_merging_does_not_depend_on_order_or_grouping() -> None:
    for a, b, c in product((1, 0, -1), repeat=3):
        whole = merge_mentions({a, b, c})
        assert whole == merge_mentions({merge_mentions({a, b}), c}) == merge_mentions({a, merge_mentions({b, c})})


def test_no_finding_ignores_devices_only() -> None:
    assert is_no_finding({"Support Devices": 1, "Edema": 0})
    assert not is_no_finding({"Edema": -1})
    assert in_order({"Fracture": 1, "Edema": 0}) == {"Edema": 0, "Fracture": 1}
    assert list(in_order({"Fracture": 1, "Edema": 0})) == ["Edema", "Fracture"]
