"""Training does not depend on how the global batch is split into micro-batches or over processes."""

import socket
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

from medunifier.shared.command import run_command
from medunifier.stage1_tokenizer import train
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.model.discriminator import PatchDiscriminator
from tests.stage1_tokenizer.training.test_train import LOSS, SCRIPT, environment, losses, write_config

pytestmark = pytest.mark.usefixtures("no_curves")

# Without the accuracy: it counts logits above a threshold, and one of a thousand may end up on the other side.
COMPARED = ("l1", "l2", "codebook", "commitment", "discriminator", "lr", "validation/psnr")


@pytest.fixture(scope="module")
def one_batch(image_shards, tmp_path_factory):
    """Return the metrics of a run with batches of eight studies, without adversarial loss for the generator.

    The adaptive weight is a ratio of norms, so it differs between micro-batches.
    """
    folder = tmp_path_factory.mktemp("one")
    return run_with(folder, image_shards, batch_size=8)


def config_of(folder, shards, **loop):
    path = write_config(folder, shards, folder / "run", steps=6, log_every=1, checkpoint_every=6, **loop)
    text = path.read_text().replace("start: 4", "start: 100").replace("train_from: 2", "train_from: 0")
    path.write_text(text)
    return path


def run_with(folder, shards, **loop):
    assert run_command(train.main, ["--config", str(config_of(folder, shards, **loop))]) == 0
    return losses(folder / "run")


def assert_same_metrics(ours, theirs):
    assert len(ours) == len(theirs)
    for line, expected in zip(ours, theirs, strict=True):
        assert line.keys() == expected.keys()
        for name in line.keys() & set(COMPARED):
            assert line[name] == pytest.approx(expected[name], rel=2e-3), (line["step"], name)


def test_micro_batches_equal_one_batch_for_both_networks(one_batch, image_shards, tmp_path):
    assert LOSS["discriminator"]["norm"] == "group"
    assert_same_metrics(run_with(tmp_path, image_shards, batch_size=2, accumulation=4), one_batch)


def steps_with(run, name):
    """Return the steps that logged the metric ``name``."""
    return [line["step"] for line in losses(run) if name in line]


def test_both_networks_share_one_step_counter_with_micro_batches(image_shards, tmp_path):
    """Lightning counts a step per optimizer (pytorch-lightning#17958), so `start` would be reached too early."""
    config = write_config(tmp_path, image_shards, tmp_path / "run", steps=7, batch_size=1, accumulation=3)
    assert run_command(train.main, ["--config", str(config)]) == 0
    assert (LOSS["discriminator"]["train_from"], LOSS["discriminator"]["start"]) == (2, 4)  # counted from 0
    assert steps_with(tmp_path / "run", "discriminator") == [3, 4, 5, 6, 7]
    assert steps_with(tmp_path / "run", "adversarial") == [5, 6, 7]


def test_gradients_of_both_networks_are_reduced_in_the_last_micro_batch_only(image_shards, tmp_path, monkeypatch):
    """Accelerate ignores a list in `accumulate([g, d])`: gradients would be reduced in every micro-batch."""
    not_reduced = []
    original = Accelerator.no_sync
    monkeypatch.setattr(
        Accelerator, "no_sync", lambda self, model: not_reduced.append(type(model).__name__) or original(self, model)
    )
    config = write_config(tmp_path, image_shards, tmp_path / "run", steps=2, batch_size=1, accumulation=3)
    assert run_command(train.main, ["--config", str(config)]) == 0
    assert (
        sorted(not_reduced) == ["PatchDiscriminator"] * 4 + ["VQGAN"] * 4
    )  # two of three micro-batches, in two steps


def test_discriminator_processes_real_and_generated_images_in_one_pass(image_shards, tmp_path, monkeypatch):
    """Two passes through a BatchNorm fail under DDP (in-place error), and separate statistics reveal the class."""
    batches = []
    original = PatchDiscriminator.forward
    monkeypatch.setattr(
        PatchDiscriminator, "forward", lambda self, images: batches.append(len(images)) or original(self, images)
    )
    config = write_config(tmp_path, image_shards, tmp_path / "run", steps=4, batch_size=3)
    config.write_text(config.read_text().replace("norm: group", "norm: batch"))
    assert run_command(train.main, ["--config", str(config)]) == 0
    assert batches == [6, 6]  # trained in the last two of four steps, before its loss reaches the generator


def run_on_two_processes(config):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    result = subprocess.run(
        [*launch, str(SCRIPT), "--config", str(config)], capture_output=True, text=True, env=environment()
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_two_processes_equal_one(one_batch, image_shards, tmp_path):
    run_on_two_processes(config_of(tmp_path, image_shards, batch_size=4))
    assert_same_metrics(losses(tmp_path / "run"), one_batch)
    assert FrozenTokenizer.from_pretrained(tmp_path / "run" / "tokenizer").codebook_size == 32


def adversarial_config(folder, shards, **loop):
    """Write a configuration with adversarial loss from the second step on, and LeCAM."""
    path = write_config(folder, shards, folder / "run", steps=4, log_every=1, checkpoint_every=4, **loop)
    text = path.read_text().replace("start: 4", "start: 1\n    lecam_weight: 0.1").replace("ramp: 2", "ramp: 1")
    path.write_text(text.replace("train_from: 2", "train_from: 0"))
    return path


@pytest.mark.slow
def test_two_processes_share_adaptive_weight_and_lecam(image_shards, tmp_path):
    """The adaptive weight is a ratio of norms of the mean gradients over all processes."""
    (tmp_path / "one").mkdir()
    assert (
        run_command(train.main, ["--config", str(adversarial_config(tmp_path / "one", image_shards, batch_size=8))])
        == 0
    )
    run_on_two_processes(adversarial_config(tmp_path, image_shards, batch_size=4))
    ours, theirs = (
        [line for line in losses(folder / "run") if "adaptive_weight" in line]
        for folder in (tmp_path, tmp_path / "one")
    )
    assert len(ours) == len(theirs) == 3
    for line, expected in zip(ours, theirs, strict=True):
        for name in (*COMPARED[:-1], "adaptive_weight", "adversarial", "lecam"):
            assert line[name] == pytest.approx(expected[name], rel=5e-3, abs=1e-4), (line["step"], name)
    # LeCAM's averages move by 1 % per step, so its loss barely depends on which processes were averaged; its state
    # does.
    ours, theirs = (lecam_state(folder / "run") for folder in (tmp_path, tmp_path / "one"))
    for name in ("real", "generated"):
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=2e-3), name


def lecam_state(run):
    """Return LeCAM's averages in the newest checkpoint; they were registered after the EMA of the weights."""
    (path,) = (run / "checkpoints").glob("*/custom_checkpoint_1.pkl")
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_discriminator_with_batch_norm_trains_on_two_processes(image_shards, tmp_path):
    """Two passes through a BatchNorm under DDP are an in-place error (MONAI/GenerativeModels#352, #451)."""
    config = write_config(tmp_path, image_shards, tmp_path / "run", batch_size=4)
    config.write_text(config.read_text().replace("norm: group", "norm: batch"))
    run_on_two_processes(config)
    assert (
        steps_with(tmp_path / "run", "discriminator")[0] == 3 and steps_with(tmp_path / "run", "adversarial")[0] == 5
    )
    assert FrozenTokenizer.from_pretrained(tmp_path / "run" / "tokenizer").codebook_size == 32
