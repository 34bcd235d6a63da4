"""The pointing game with maps that are right, reversed and constant, on masks of one code each."""

import numpy as np
import pytest

from medunifier.stage2_unified.evaluate.results.result import EvaluationContext
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from medunifier.stage2_unified.evaluate.tasks.pointing import covered_cells
from medunifier.stage2_unified.evaluate.tasks.zero_shot import evaluate_zero_shot
from tests.stage2_unified.evaluate.phantom_oracle import SIZE, FakeTokenizer, Oracle, code_of, write_shards

FINDINGS = ("Pleural Effusion", "Cardiomegaly")


def cell_mask(number):
    mask = np.zeros((SIZE, SIZE), bool)
    row, column = divmod(number % 16, 4)
    mask[8 * row + 3, 8 * column : 8 * column + 8] = True
    return mask


@pytest.fixture(scope="module")
def masked(studies, tmp_path_factory):
    masks = [
        {name: cell_mask(number + shift) for shift, name in enumerate(FINDINGS) if info["labels"].get(name) == 1}
        for number, (_, info) in enumerate(studies)
    ]
    return write_shards(tmp_path_factory.mktemp("pointing"), studies, masks=masks)


class Pointing(Oracle):
    sign = 1

    def similarity_maps(self, codes, views, report, against, reference):
        assert len(reference) >= len(codes)
        assert report["findings"] and against["findings"].replace("no ", "") == report["findings"]
        shift = [finding.lower() in report["findings"] for finding in FINDINGS].index(True)
        numbers = {code_of(pixels).tobytes(): number for number, (pixels, _) in enumerate(self.studies)}
        found = [numbers[np.ascontiguousarray(code).tobytes()] + shift for code in codes]
        return self.sign * np.eye(16)[np.array(found) % 16].reshape(-1, 4, 4)


def evaluated(shards, pipeline):
    return evaluate_zero_shot(EvaluationContext(pipeline, EvaluationData(str(shards), FakeTokenizer())))


def test_the_highest_code_must_cover_a_part_of_the_mask(masked, studies):
    result = evaluated(masked, Pointing(studies))
    assert result.metrics["zero_shot.pointing"] == 1
    assert result.metrics["zero_shot.pointing.baseline"] == pytest.approx(1 / 16)
    assert set(result.details["pointing"]) == set(FINDINGS)
    reversed_maps = Pointing(studies)
    reversed_maps.sign = -1
    assert evaluated(masked, reversed_maps).metrics["zero_shot.pointing"] < 0.2


def test_there_is_no_figure_without_masks_or_maps(masked, image_shards, studies):
    assert "zero_shot.pointing" not in evaluated(image_shards, Pointing(studies)).metrics
    assert "zero_shot.pointing" not in evaluated(masked, Oracle(studies)).metrics


def test_a_cell_is_covered_by_any_pixel_of_the_mask():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, 3, 6] = True
    expected = np.zeros((1, 3, 3), bool)
    expected[0, 1, 2] = True
    assert (covered_cells(masks, (3, 3)) == expected).all()
