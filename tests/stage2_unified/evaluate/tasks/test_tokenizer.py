"""The tokenizer task with a lossless, a coarse and a wrong tokenizer, and its record of networks and labels."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.config import PerceptualConfig, model_config
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.pixel_range import to_model
from medunifier.stage2_unified.evaluate.command import EvaluateConfig, evaluate
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from medunifier.stage2_unified.evaluate.tasks.tokenizer import TokenizerEvaluation, evaluate_tokenizer_task
from tests.stage2_unified.evaluate.phantom_oracle import SIZE, write_shards


class GreyLevels:
    """Encode the mean 8-bit grey level of squares of ``cell`` pixels; lossless with one pixel."""

    image_size, codebook_size, fingerprint = SIZE, 256, "a" * 64
    codebook = torch.zeros(256, 1)

    def __init__(self, cell=1):
        self.cell = cell

    def encode_indices(self, images):
        return avg_pool2d((images[:, :1] + 1) * 127.5, self.cell).round().long()[:, 0]

    def decode_indices(self, codes):
        return interpolate(codes[:, None] / 127.5 - 1, scale_factor=float(self.cell))

    def encode_images(self, images, batch_size=32):
        stack = torch.from_numpy(np.stack([to_model(image) for image in images]))
        return self.encode_indices(stack[:, None]).numpy()


def evaluated(tokenizer, shards, **options):
    return evaluate_tokenizer_task(tokenizer, EvaluationData(str(shards), tokenizer), TokenizerEvaluation(**options))


def test_a_lossless_tokenizer_preserves_all_findings(image_shards):
    result = evaluated(GreyLevels(), image_shards, feature_net="random", classifier_steps=20, bootstrap=5)
    metrics = result.metrics
    assert metrics["tokenizer.psnr"] == 100 and metrics["tokenizer.rfid"] < 1e-6
    assert metrics["tokenizer.rfid.baseline"] > 0
    assert metrics["tokenizer.label_auroc"] == metrics["tokenizer.label_auroc.real"]
    assert metrics["tokenizer.label_auroc_change"] == 0
    assert result.details["intervals"]["tokenizer.label_auroc_change"] == [0, 0]
    per_finding = result.details["per_finding"]
    assert per_finding["originals"] == per_finding["reconstructions"]
    assert (
        per_finding["originals"].keys() == result.details["positives"].keys()
        and "Cardiomegaly" in per_finding["originals"]
    )


def test_a_coarse_tokenizer_loses_findings_and_has_a_large_rfid(image_shards):
    metrics = evaluated(GreyLevels(16), image_shards, classifier_steps=75, feature_net="random", bootstrap=5).metrics
    assert metrics["tokenizer.label_auroc.real"] > 0.65 and metrics["tokenizer.label_auroc.baseline"] == 0.5
    assert metrics["tokenizer.label_auroc_change"] < -0.05
    assert metrics["tokenizer.rfid"] > 1e-3 * metrics["tokenizer.rfid.baseline"] > 0


class WrongPatient(GreyLevels):
    """Decode every radiograph losslessly as that of the previous patient in the batch."""

    def decode_indices(self, codes):
        return super().decode_indices(codes).roll(1, dims=0)


def test_reconstructions_of_other_patients_are_at_chance(image_shards):
    metrics = evaluated(WrongPatient(), image_shards, classifier_steps=75, bootstrap=5).metrics
    assert metrics["tokenizer.label_auroc.real"] > 0.65
    assert metrics["tokenizer.label_auroc"] == pytest.approx(0.5, abs=0.12)
    assert metrics["tokenizer.psnr"] < metrics["tokenizer.psnr.baseline"]


def test_the_result_and_its_page_name_every_network(image_shards, tmp_path):
    config = EvaluateConfig(
        "m", str(image_shards), str(tmp_path / "r.json"), tokenizer_limit=30, classifier_steps=20, bootstrap=5,
        feature_net="random", perceptual=PerceptualConfig("squeeze", "random"),
    )  # fmt: skip
    evaluate("tokenizer", config, GreyLevels(2), None, "")
    result = json.loads((tmp_path / "r.json").read_text())
    nets = result["details"]["tokenizer"]["nets"]
    assert nets.keys() == {"lpips", "rfid", "findings"}
    assert nets["lpips"] == "squeeze, random weights" and "SHA-256" in nets["rfid"] and "128 x 128" in nets["rfid"]
    assert "20 steps" in nets["findings"] and result["metrics"]["tokenizer.lpips"] > 0
    page = (tmp_path / "r.html").read_text()
    assert all(value.split(";")[0] in page for value in nets.values())
    assert "AUROC by finding" in page and "reconstructions" in page and "tokenizer.rfid" in page


def test_missing_network_weights_are_named_in_the_error(image_shards):
    with pytest.raises(UserError, match="inception_v3"):
        evaluated(GreyLevels(), image_shards, feature_net="inception_v3")
    with pytest.raises(UserError, match="vgg16-397923af.pth at /nowhere"):
        evaluated(GreyLevels(), image_shards, perceptual=PerceptualConfig("vgg", "/nowhere/vgg16-397923af.pth"))


def test_data_without_labels_are_evaluated_without_findings(studies, tmp_path):
    unlabelled = [(pixels, info | {"labels": {}}) for pixels, info in studies[:60]]
    config = EvaluateConfig("m", str(write_shards(tmp_path / "d", unlabelled)), str(tmp_path / "r.json"))
    evaluate("tokenizer", config, GreyLevels(), None, "")
    result = json.loads((tmp_path / "r.json").read_text())
    assert "tokenizer.label_auroc" not in result["metrics"] and result["metrics"]["tokenizer.psnr"] == 100
    assert "both classes" in result["details"]["tokenizer"]["findings_left_out"]
    assert "both classes" in (tmp_path / "r.html").read_text()


def test_three_channels_are_shown_as_their_mean(image_shards):
    torch.manual_seed(2)
    model = VQGAN(model_config({
        "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1,
        "attn_resolutions": [], "z_channels": 8, "n_embed": 32, "embed_dim": 4, "norm_groups": 4,
    }))  # fmt: skip
    tokenizer = FrozenTokenizer(model)
    result = evaluated(tokenizer, image_shards, classifier_steps=0)
    first = EvaluationData(str(image_shards), tokenizer).dataset("test")[0].images[0]
    decoded = tokenizer.decode_indices(torch.from_numpy(tokenizer.encode_images([first])))[0]
    assert decoded.std(dim=0).max() > 0.01  # an untrained model's channels differ
    expected = (decoded.mean(dim=0) / 2 + 0.5).clamp(0, 1).numpy()
    np.testing.assert_allclose(result.pictures["tokenizer-reconstruction-0"], expected, atol=1e-5)
    worst = [name for row in result.details["examples"] if row["kind"] == "worst" for name in [row["reconstruction"]]]
    assert len(worst) == 8 and result.pictures[worst[0]].shape == (SIZE, SIZE)
