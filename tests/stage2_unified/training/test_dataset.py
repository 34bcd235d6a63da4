"""Which studies of a split stage 2 trains on: those with text and, with statements, those with labels alone."""

import pytest

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.training.dataset import StudiesWithText

INFOS = [
    {"report": {"findings": "Clear."}, "labels": {}},
    {"report": {"findings": " "}, "labels": {"Edema": 1}},
    {"report": {}, "labels": {"Edema": -1}},  # uncertain: nothing is known of it
    {"report": {}, "labels": {"Edema": 0, "Fracture": -1}},
]


class Split(list):
    """Stands for a split of a shard folder."""

    split, root = "train", "shards"

    def infos(self):
        return list(self)

    def info(self, number):
        return self[number]


def test_studies_with_labels_alone_count_with_statements_and_have_no_report():
    assert StudiesWithText(Split(INFOS), ["findings"]).numbers == [0]
    studies = StudiesWithText(Split(INFOS), ["findings"], labelled=True)
    assert studies.numbers == [0, 1, 3] and studies.without_text == 2
    assert list(studies.reports()) == [{"findings": "Clear."}]


def test_data_without_text_are_refused_unless_labels_suffice():
    without = Split(INFOS[1:])
    with pytest.raises(UserError, match="no text"):
        StudiesWithText(without, ["findings"])
    assert list(StudiesWithText(without, ["findings"], labelled=True).reports(limit=5)) == []
    with pytest.raises(UserError):
        StudiesWithText(Split(INFOS[2:3]), ["findings"], labelled=True)
