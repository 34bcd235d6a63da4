"""Training from the command line: run folder, resuming after a kill, invalid options, failure messages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from medunifier.shared.command import run_command
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.train import main
from medunifier.stage1_tokenizer.training.fidelity import Fidelity
from tests.stage1_tokenizer.conftest import TINY

pytestmark = pytest.mark.usefixtures("no_curves")  # those of `finished_run` are plotted

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "stage1_tokenizer" / "train.py"

LOSS = {
    "l2_weight": 2.0,
    "perceptual": {"net": "none"},
    "gan_weight": 0.5,
    "discriminator": {"width": 8, "layers": 1, "norm": "group", "train_from": 2, "start": 4, "ramp": 2},
}
LOOP = {
    "steps": 8,
    "batch_size": 4,
    "workers": 0,
    "threads": 1,
    "log_every": 1,
    "validate_every": 4,
    "checkpoint_every": 2,
}


def write_config(folder, shards, run_dir, **loop):
    values = {
        "data": {"shards": str(shards), "pictures": 3},
        "run_dir": str(run_dir),
        "model": TINY,
        "loss": LOSS,
        "optim": {"lr": 1e-3, "betas": [0.5, 0.9], "warmup_steps": 2},
        "loop": LOOP | loop,
    }
    path = folder / f"{Path(run_dir).name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def losses(run_dir):
    """Return all logged metrics except times and memory, by step."""
    excluded = ("samples_per_s", "mfu", "data_wait_fraction", "memory_gib")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in excluded} for line in lines]


def test_run_folder_has_checkpoints_images_metrics_and_tokenizer(finished_run):
    _, run = finished_run
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-6", "step-8"}
    assert {path.name for path in (run / "pictures").iterdir()} == {
        "reconstructions-0000004.png", "reconstructions-0000008.png",
    }  # fmt: skip
    assert (run / "curves.png").is_file()
    lines = losses(run)
    validation = [line for line in lines if "validation/psnr" in line]
    assert [line["step"] for line in validation] == [4, 8]
    assert {"validation/ssim", "validation/codebook_usage", "validation/perplexity"} < validation[0].keys()
    training = [line for line in lines if "l1" in line]
    # Counted from 0, the discriminator trains from step 2 and its loss counts from step 4: one counter for both.
    assert [line["step"] for line in training if "discriminator" in line] == [3, 4, 5, 6, 7, 8]
    assert [line["step"] for line in training if "adversarial" in line] == [5, 6, 7, 8]
    assert {"discriminator_accuracy", "adaptive_weight", "lr", "codebook", "commitment"} < training[-1].keys()
    assert training[0]["l2"] > 0
    raw = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["mfu"] < 1 for line in raw if "l1" in line)
    tokenizer = FrozenTokenizer.from_pretrained(run / "tokenizer")
    assert tokenizer.grid == (8, 8)
    assert "psnr" in (run / "tokenizer" / "README.md").read_text()


def test_running_a_finished_run_again_changes_nothing(finished_run, capsys):
    config, run = finished_run
    before = (run / "tokenizer" / "model.safetensors").stat().st_mtime_ns
    assert run_command(main, ["--config", str(config)]) == 0
    assert "done already" in capsys.readouterr().out
    assert (run / "tokenizer" / "model.safetensors").stat().st_mtime_ns == before


def test_run_resumed_after_a_kill_is_bitwise_equal(finished_run, image_shards, tmp_path):
    _, reference = finished_run
    run = tmp_path / "run"
    config = write_config(tmp_path, image_shards, run)
    # As a script: its folder comes first on sys.path, where a module could shadow one of the standard library.
    command = [sys.executable, str(SCRIPT), "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    # After the checkpoint of step 2 and a step beyond it, which is lost and repeated.
    while not (metrics.is_file() and '"step": 3' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "tokenizer").exists()
    assert run_command(main, ["--config", str(config)]) == 0
    assert losses(run) == losses(reference)
    for name in ("model.safetensors", "codebook.safetensors"):
        weights, expected = load_file(run / "tokenizer" / name), load_file(reference / "tokenizer" / name)
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    for path in (reference / "checkpoints" / "step-8").glob("*.safetensors"):  # both networks
        weights, expected = load_file(run / "checkpoints" / "step-8" / path.name), load_file(path)
        assert all(torch.equal(weights[key], expected[key]) for key in expected)


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_invalid_options_are_refused_in_one_line(image_shards, tmp_path, capsys, finished_run):
    config, _ = finished_run
    no_weights = ["--loss.perceptual.net", "vgg", "--loss.perceptual.weights", "/nowhere.pth"]
    cases = [
        (["--model.colour", "red"], 2, "colour"),
        (["--data.shards", str(tmp_path / "nowhere"), "--run_dir", str(tmp_path / "a")], 1, "nowhere"),
        (["--model.ch", "16"], 1, "model.ch: 8 -> 16"),
        (["--model.resolution", "64", "--run_dir", str(tmp_path / "b")], 1, "32 x 32 pixels"),
        ([*no_weights, "--run_dir", str(tmp_path / "c")], 1, "vgg16-397923af.pth"),
    ]
    for options, code, part in cases:
        assert run_command(main, ["--config", str(config), *options]) == code
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and part in error


def test_non_finite_loss_stops_the_run_and_is_named(image_shards, tmp_path, capsys):
    config = write_config(tmp_path, image_shards, tmp_path / "run")
    assert run_command(main, ["--config", str(config), "--optim.lr", "1e30", "--optim.max_grad_norm", "0"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "l1" in error and "step" in error


def test_l2_weight_changes_the_update(finished_run, image_shards, tmp_path):
    _, reference = finished_run
    config = write_config(tmp_path, image_shards, tmp_path / "run")
    assert run_command(main, ["--config", str(config), "--loss.l2_weight", "0"]) == 0
    without = losses(tmp_path / "run")
    assert "l2" not in without[0] and without[0]["l1"] == losses(reference)[0]["l1"]
    assert without[1]["l1"] != losses(reference)[1]["l1"]


# Gumbel's temperature and noise are resumed in test_resume_elsewhere.py as well.
@pytest.mark.parametrize("kind", ["ema_vq", pytest.param("gumbel_vq", marks=pytest.mark.slow)])
def test_resumed_run_restores_all_state(kind, image_shards, tmp_path):
    """Discriminator, LeCAM's averages, EMA, EMA codebook, temperature and noise are bitwise equal."""
    options = ["--optim.schedule", "constant", "--model.quantizer.kind", kind,
               "--model.quantizer.dead_code_interval", "2", "--model.quantizer.dead_code_threshold", "0.9",
               "--loss.discriminator.lecam_weight", "0.1",
               "--loop.validate_every", "100"]  # fmt: skip
    runs = {}
    for name, stops in (("uninterrupted", [6]), ("resumed", [4, 6])):
        config = write_config(tmp_path, image_shards, tmp_path / name)
        for steps in stops:
            assert run_command(main, ["--config", str(config), *options, "--loop.steps", str(steps)]) == 0
        runs[name] = tmp_path / name
    lines = {name: [line for line in losses(run) if "l1" in line] for name, run in runs.items()}
    assert lines["resumed"] == lines["uninterrupted"]
    assert any(line.get("lecam", 0) > 0 for line in lines["uninterrupted"])
    for path in (runs["uninterrupted"] / "checkpoints" / "step-6").glob("*.safetensors"):
        weights, expected = load_file(runs["resumed"] / "checkpoints" / "step-6" / path.name), load_file(path)
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    frozen = {name: FrozenTokenizer.from_pretrained(run / "tokenizer").fingerprint for name, run in runs.items()}
    assert frozen["uninterrupted"] == frozen["resumed"]


def test_codebook_collapse_is_warned_of_once(image_shards, tmp_path, capsys, monkeypatch):
    """Per-batch usage hides a collapse (bytedance/1d-tokenizer#27), so usage of the validation set is monitored."""
    usage = iter([0.9, 0.5, 0.4, 0.8])
    original = Fidelity.figures
    monkeypatch.setattr(Fidelity, "figures", lambda self: original(self) | {"codebook_usage": next(usage)})
    config = write_config(tmp_path, image_shards, tmp_path / "run", validate_every=2)
    assert run_command(main, ["--config", str(config)]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "collapses" in line]
    assert len(warnings) == 1 and "step 6: 40% of the codebook" in warnings[0]
