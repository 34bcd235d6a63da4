"""Metrics of a frozen tokenizer over a data set, and their baselines."""

import numpy as np
import pytest
import torch

from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.metrics.images import codebook_usage as codebook
from medunifier.shared.metrics.images.codebook_usage import CodeCount
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.evaluate import evaluate_tokenizer
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.training.fidelity import Fidelity
from tests.stage1_tokenizer.conftest import SIZE, TINY


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return FrozenTokenizer(VQGAN(TINY))


def test_metrics_cover_all_images_and_do_not_depend_on_the_batch_size(tokenizer, image_shards):
    dataset = ShardDataset(image_shards, "test")
    results = [
        evaluate_tokenizer(tokenizer, dataset, perceptual=PerceptualConfig("squeeze", "random"), batch_size=size)
        for size in (1, 8)
    ]
    images = [image for number in range(len(dataset)) for image in dataset[number].images]
    assert results[0]["images"] == len(images) > results[0]["studies"] == 8
    codes = tokenizer.encode_images(images)
    counts = np.bincount(codes.ravel(), minlength=32) / codes.size
    used = counts[counts > 0]
    assert results[0]["codebook_usage"] == len(used) / 32
    assert results[0]["perplexity"] == pytest.approx(np.exp(-(used * np.log(used)).sum()))
    for name in ("psnr", "ssim", "lpips", "psnr_baseline", "codebook_usage", "perplexity"):
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-4)
    assert "random" in results[0]["lpips_net"] and results[0]["codebook_usage_baseline"] == 1 / 32
    assert "ms_ssim" not in results[0]
    worst = results[0]["worst"]
    assert [case.psnr for case in worst] == sorted(case.psnr for case in worst)
    error = np.mean((worst[0].original.astype(float) - worst[0].reconstruction) ** 2)
    assert worst[0].psnr == pytest.approx(-10 * np.log10(error), abs=1e-3)


def test_psnr_baseline_is_the_mean_training_image(tokenizer, image_shards):
    result = evaluate_tokenizer(tokenizer, ShardDataset(image_shards, "test"))
    images = {
        split: np.stack([i for n in range(len(data)) for i in data[n].images]) / 255
        for split in ("train", "test")
        for data in [ShardDataset(image_shards, split)]
    }
    errors = ((images["test"] - images["train"].mean(0)) ** 2).mean((1, 2))
    assert result["psnr_baseline"] == pytest.approx(float(np.mean(-10 * np.log10(errors))), abs=1e-3)
    assert "lpips" not in result


def test_equal_images_have_perfect_scores_and_large_images_have_ms_ssim():
    fidelity = Fidelity(4, 176, None)
    images = torch.rand(2, 1, 176, 176) * 2 - 1
    fidelity.add(images, images, torch.zeros(2, 2, 2, dtype=torch.int64))
    metrics = fidelity.figures()
    assert metrics["psnr"] == 100 and metrics["ssim"] == pytest.approx(1) and metrics["ms_ssim"] == pytest.approx(1)
    assert metrics["codebook_usage"] == 0.25 and metrics["perplexity"] == 1
    assert "ms_ssim" not in Fidelity(4, SIZE, None).figures()


def test_usage_and_perplexity_cover_all_processes(monkeypatch):
    local, other = CodeCount(8), CodeCount(8)
    local.add(torch.tensor([[0, 1], [1, 0]]))
    other.add(torch.tensor([4, 4, 5, 5]))
    monkeypatch.setattr(codebook, "all_reduce_sum", lambda counts: counts + other.counts)
    assert local.figures() == {"codebook_usage": 0.5, "perplexity": pytest.approx(4)}
