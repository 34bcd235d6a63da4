"""Shares of sampled drafts: counted as the labeler reads them, the same each time; no random numbers but its own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.inference.sampled_findings import sampled_probability


def test_drafts_that_state_count_whole_that_doubt_count_half_and_that_deny_do_not():
    drafts = [
        {"findings": "There is a left pleural effusion.", "impression": ""},
        {"findings": "There is a left pleural effusion. No pneumothorax.", "impression": "Cardiomegaly."},
        {"findings": "Possible pleural effusion.", "impression": ""},
        {"findings": "", "impression": ""},
    ]
    asked = []

    def write_reports(codes, views, **generate):
        asked.append((codes.shape, views, generate["do_sample"]))
        return drafts

    shares = sampled_probability(
        SimpleNamespace(write_reports=write_reports), np.zeros((2, 4, 4), int), ["PA", "AP"], 4
    )
    assert asked == [((4, 4, 4), ["PA"] * 4, True), ((4, 4, 4), ["AP"] * 4, True)]
    assert shares["pleural effusion"] == pytest.approx([2.5 / 4] * 2)
    assert shares["cardiomegaly"] == pytest.approx([1 / 4] * 2)
    assert shares["pneumothorax"] == pytest.approx([0, 0]) and len(shares) == 14


def test_a_radiograph_has_the_same_drafts_alone_and_beside_others(model_folder):
    pipeline = MedUnifierPipeline.from_pretrained(model_folder, "cpu")
    codes = np.random.default_rng(0).integers(0, pipeline.tokenizer.codebook_size, (3, *pipeline.tokenizer.grid))
    written = []
    plain = pipeline.write_reports
    pipeline.write_reports = lambda *given, **more: written.append(plain(*given, **more)) or written[-1]
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    sampled_probability(pipeline, codes, ["PA"] * 3, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    sampled_probability(pipeline, codes[1:2], ["PA"], 2)
    assert len(written) == 4 and written[3] == written[1]
    assert written[1][0] != written[1][1], "drafts of one radiograph differ"
