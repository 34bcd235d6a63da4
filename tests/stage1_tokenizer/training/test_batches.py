"""How a global batch is cut, into micro-batches or over processes, changes nothing."""

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

# Not the accuracy: it counts logits beyond a threshold, where one of a thousand may fall to the other side.
COMPARED = ("l1", "l2", "codebook", "commitment", "discriminator", "lr", "validation/psnr")


@pytest.fixture(scope="module")
def one_batch(image_shards, tmp_path_factory):
    """Steps of eight studies in one piece. The generator hears nothing of the discriminator: the adaptive weight
    is a ratio of norms, which a micro-batch has of its own."""
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


def assert_same_course(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() & set(COMPARED):
            assert mine[name] == pytest.approx(other[name], rel=2e-3), (mine["step"], name)


def test_micro_batches_equal_one_batch_for_both_networks(one_batch, image_shards, tmp_path):
    assert LOSS["discriminator"]["norm"] == "group"
    assert_same_course(run_with(tmp_path, image_shards, batch_size=2, accumulation=4), one_batch)


def shown(run, name):
    """Steps whose line of figures has this one."""
    return [line["step"] for line in losses(run) if name in line]


def test_one_step_counter_for_both_networks_however_many_micro_batches(image_shards, tmp_path):
    """Lightning counts a step for every optimizer (pytorch-lightning#17958): `start` would come too early."""
    config = write_config(tmp_path, image_shards, tmp_path / "run", steps=7, batch_size=1, accumulation=3)
    assert run_command(train.main, ["--config", str(config)]) == 0
    assert (LOSS["discriminator"]["train_from"], LOSS["discriminator"]["start"]) == (2, 4)  # counted from 0
    assert shown(tmp_path / "run", "discriminator") == [3, 4, 5, 6, 7]
    assert shown(tmp_path / "run", "adversarial") == [5, 6, 7]


def test_gradients_of_both_networks_wait_for_the_last_micro_batch(image_shards, tmp_path, monkeypatch):
    """`accumulate([g, d])` with a list is not understood: every micro-batch would be reduced over processes."""
    waited = []
    honest = Accelerator.no_sync
    monkeypatch.setattr(
        Accelerator, "no_sync", lambda self, model: waited.append(type(model).__name__) or honest(self, model)
    )
    config = write_config(tmp_path, image_shards, tmp_path / "run", steps=2, batch_size=1, accumulation=3)
    assert run_command(train.main, ["--config", str(config)]) == 0
    assert sorted(waited) == ["PatchDiscriminator"] * 4 + ["VQGAN"] * 4  # two of three, in two steps


def test_the_discriminator_sees_both_sides_in_one_pass(image_shards, tmp_path, monkeypatch):
    """Two passes through a BatchNorm under DDP were an in-place error, and separate statistics reveal the sides."""
    batches = []
    honest = PatchDiscriminator.forward
    monkeypatch.setattr(
        PatchDiscriminator, "forward", lambda self, images: batches.append(len(images)) or honest(self, images)
    )
    config = write_config(tmp_path, image_shards, tmp_path / "run", steps=4, batch_size=3)
    config.write_text(config.read_text().replace("norm: group", "norm: batch"))
    assert run_command(train.main, ["--config", str(config)]) == 0
    assert batches == [6, 6]  # it trains in the last two of four steps, and has no say yet


def run_on_two(config):
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
    run_on_two(config_of(tmp_path, image_shards, batch_size=4))
    assert_same_course(losses(tmp_path / "run"), one_batch)
    assert FrozenTokenizer.from_pretrained(tmp_path / "run" / "tokenizer").codes == 32


def adversarial_config(folder, shards, **loop):
    """The discriminator counts from the second step on, with LeCAM."""
    path = write_config(folder, shards, folder / "run", steps=4, log_every=1, checkpoint_every=4, **loop)
    text = path.read_text().replace("start: 4", "start: 1\n    lecam_weight: 0.1").replace("ramp: 2", "ramp: 1")
    path.write_text(text.replace("train_from: 2", "train_from: 0"))
    return path


@pytest.mark.slow
def test_two_processes_have_one_adaptive_weight_and_one_lecam(image_shards, tmp_path):
    """The weight is a ratio of norms: of the mean gradient over processes, not of each process' own."""
    (tmp_path / "one").mkdir()
    assert (
        run_command(train.main, ["--config", str(adversarial_config(tmp_path / "one", image_shards, batch_size=8))])
        == 0
    )
    run_on_two(adversarial_config(tmp_path, image_shards, batch_size=4))
    ours, theirs = (
        [line for line in losses(folder / "run") if "adaptive_weight" in line]
        for folder in (tmp_path, tmp_path / "one")
    )
    assert len(ours) == len(theirs) == 3
    for mine, other in zip(ours, theirs, strict=True):
        for name in (*COMPARED[:-1], "adaptive_weight", "adversarial", "lecam"):
            assert mine[name] == pytest.approx(other[name], rel=5e-3, abs=1e-4), (mine["step"], name)
    # What LeCAM follows moves by a hundredth a step: its loss hardly shows whose means they were, its state does.
    ours, theirs = (lecam_state(folder / "run") for folder in (tmp_path, tmp_path / "one"))
    for name in ("real", "generated"):
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=2e-3), name


def lecam_state(run):
    """The averages in the newest checkpoint; the averaged weights were registered before them."""
    (path,) = (run / "checkpoints").glob("*/custom_checkpoint_1.pkl")
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_batch_norm_in_the_discriminator_trains_on_two_processes(image_shards, tmp_path):
    """Two passes through it under DDP are an in-place error (MONAI/GenerativeModels#352, #451)."""
    config = write_config(tmp_path, image_shards, tmp_path / "run", batch_size=4)
    config.write_text(config.read_text().replace("norm: group", "norm: batch"))
    run_on_two(config)
    assert shown(tmp_path / "run", "discriminator")[0] == 3 and shown(tmp_path / "run", "adversarial")[0] == 5
    assert FrozenTokenizer.from_pretrained(tmp_path / "run" / "tokenizer").codes == 32
