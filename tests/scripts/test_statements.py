"""The benchmark of statement pairs: which pairs agree and contradict, and what an embedding scores on them."""

import numpy as np
import pytest

from medunifier.bench import load_benchmark
from medunifier.data.reports.labeler import label_report

PRESENT, ABSENT = "There is a small pleural effusion.", "No pleural effusion is seen."


@pytest.fixture
def bench(monkeypatch):
    """The benchmark on made studies, half of them with an effusion, in eight wordings each."""
    module = load_benchmark("statements")
    words = ("Again", "Overall", "Today", "Now", "Here", "Still", "Stable", "Once more")
    texts = [f"{word}: {sentence}" for word in words for sentence in (PRESENT, ABSENT)]
    studies = [{"report": {"findings": text}, "labels": label_report(text)} for text in texts]

    class Dataset:
        def __init__(self, folder, split):
            assert split == "test"

        def infos(self):
            return studies

    monkeypatch.setattr(module, "ShardDataset", Dataset)
    return module


def test_an_embedding_of_the_polarity_is_right_and_one_of_the_finding_alone_at_chance(bench, tmp_path):
    def polarity(texts):
        denied = [any(word in text.lower() for word in ("no ", "absent")) for _, text in texts]
        return np.array([[float(value), float(not value)] for value in denied])

    def topic(texts):
        return np.array([[float("effusion" in text.lower())] for _, text in texts])

    right, chance = bench.evaluate(tmp_path, polarity), bench.evaluate(tmp_path, topic)
    assert set(right) == {"pairs of sentences", "report and phrase"}
    for kind, values in right.items():
        assert values["Pleural Effusion"] == 1, kind
        assert chance[kind]["Pleural Effusion"] == 0.5
