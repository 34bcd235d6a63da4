"""Sampled-report probabilities: counted with the labeler, reproducible, without touching the global random state."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.inference.sampled_findings import sampled_probability


def test_statements_count_one_uncertain_mentions_half_and_denials_zero():
    reports = [
        {"findings": "There is a left pleural effusion.", "impression": ""},
        {"findings": "There is a left pleural effusion. No pneumothorax.", "impression": "Cardiomegaly."},
        {"findings": "Possible pleural effusion.", "impression": ""},
        {"findings": "", "impression": ""},
    ]
    calls = []

    def write_reports(codes, views, **generate):
        calls.append((codes.shape, views, generate["do_sample"]))
        return reports

    fractions = sampled_probability(
        SimpleNamespace(write_reports=write_reports), np.zeros((2, 4, 4), int), ["PA", "AP"], 4
    )
    assert calls == [((4, 4, 4), ["PA"] * 4, True), ((4, 4, 4), ["AP"] * 4, True)]
    assert fractions["pleural effusion"] == pytest.approx([2.5 / 4] * 2)
    assert fractions["cardiomegaly"] == pytest.approx([1 / 4] * 2)
    assert fractions["pneumothorax"] == pytest.approx([0, 0]) and len(fractions) == 14


def test_sampled_reports_do_not_depend_on_the_batch(model_folder):
    pipeline = MedUnifierPipeline.from_pretrained(model_folder, "cpu")
    codes = np.random.default_rng(0).integers(0, pipeline.tokenizer.codebook_size, (3, *pipeline.tokenizer.grid))
    written = []
    plain = pipeline.write_reports
    pipeline.write_reports = lambda *args, **kwargs: written.append(plain(*args, **kwargs)) or written[-1]
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    sampled_probability(pipeline, codes, ["PA"] * 3, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    sampled_probability(pipeline, codes[1:2], ["PA"], 2)
    assert len(written) == 4 and written[3] == written[1]
    assert written[1][0] != written[1][1], "samples for one radiograph differ"
