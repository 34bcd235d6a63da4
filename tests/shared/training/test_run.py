"""Run folder, checkpoints, schedule: what a training leaves and how it continues."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from medunifier.shared.errors import UserError
from medunifier.shared.report_page.plots import save_curves
from medunifier.shared.training.checkpoints import Checkpoints, DataPosition, check_global_batch
from medunifier.shared.training.config import LoopConfig, OptimConfig
from medunifier.shared.training.run_folder import RunFolder, export_once, read_metrics


@dataclass(frozen=True)
class Config:
    run_dir: str = ""
    seed: int = 0
    steps: int = 1


def test_a_run_continues_with_the_same_configuration_alone(tmp_path):
    RunFolder(tmp_path / "run", Config(seed=1))
    RunFolder(tmp_path / "run", Config(seed=1, steps=5), may_change=("steps",))
    with pytest.raises(UserError, match="seed: 1 -> 2"):
        RunFolder(tmp_path / "run", Config(seed=2, steps=5), may_change=("steps",))


def test_a_run_of_an_older_version_is_refused(tmp_path):
    RunFolder(tmp_path / "run", Config())
    saved = tmp_path / "run" / "config.yaml"
    saved.write_text(saved.read_text() + "recompute_activations: true\nmodel: {kv_heads: 4}\n")
    with pytest.raises(UserError, match="older version.*model, recompute_activations"):
        RunFolder(tmp_path / "run", Config(), may_change=("gradient_checkpointing",))


def test_remnants_of_a_killed_run_are_removed_wherever_they_lie(tmp_path):
    RunFolder(tmp_path, Config())
    remnants = [tmp_path / folder / ".partial-1-x.png" for folder in ("", "pictures", "checkpoints")]
    for path in remnants:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    RunFolder(tmp_path, Config())
    assert not [path for path in remnants if path.exists()]


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        RunFolder(tmp_path, Config())


def test_rewinding_forgets_later_lines_and_a_line_cut_short(tmp_path):
    run = RunFolder(tmp_path / "run", Config())
    for step in (10, 20, 30):
        run.log(step, {"loss": 1.0 / step})
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')
    run.rewind(20)
    run.log(30, {"loss": 7.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "run")] == [
        (10, 0.1),
        (20, 0.05),
        (30, 7.0),
    ]
    assert save_curves(tmp_path / "run").stat().st_size > 1000


def test_checkpoints_are_complete_or_absent_and_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, lambda folder: (folder / "state").write_text("whole"), DataPosition(8 * step, 8))

    def full_disk(folder):
        (folder / "state").write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="step 4"):
        checkpoints.save(4, full_disk, DataPosition(32, 8))
    assert checkpoints.steps() == [2, 3]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-2", "step-3"]
    assert checkpoints.latest() == 3
    assert checkpoints.position(3) == DataPosition(samples=24, global_batch=8)


def test_a_damaged_checkpoint_is_one_line_that_names_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    whole = b"\x02" + bytes(7) + b"{}"
    checkpoints.save(3, lambda folder: (folder / "model.safetensors").write_bytes(whole), DataPosition(1, 1))
    folders = []
    checkpoints.load(3, folders.append)
    assert folders == [str(tmp_path / "step-3")]

    def damaged(folder):
        raise RuntimeError("PytorchStreamReader failed:\n not a ZIP archive")

    with pytest.raises(UserError, match="step-3.*remove") as caught:
        checkpoints.load(3, damaged)
    assert "\n" not in str(caught.value)
    (tmp_path / "step-3" / "model.safetensors").write_bytes(whole[:9])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        checkpoints.load(3, folders.append)


def test_a_run_keeps_its_global_batch_however_it_is_split(tmp_path, monkeypatch):
    run = tmp_path / "run"
    check_global_batch(run, LoopConfig(batch_size=3))  # nothing was trained yet
    Checkpoints(run / "checkpoints").save(10, lambda folder: None, DataPosition(80, 8))
    monkeypatch.setattr("medunifier.shared.training.checkpoints.broadcast_object", lambda value: value)
    for world, accepted, refused, remedy in (
        (1, [(8, 1), (4, 2), (1, 8)], (4, 1), "--loop.batch_size 4 --loop.accumulation 2"),
        (2, [(4, 1), (2, 2)], (3, 1), "--loop.batch_size 2 --loop.accumulation 2"),
        (2, [], (8, 1), "--loop.batch_size 4 --loop.accumulation 1"),
        (3, [], (4, 1), "divides 8"),
    ):
        for module in ("medunifier.shared.training.distributed", "medunifier.shared.training.checkpoints"):
            monkeypatch.setattr(f"{module}.world_size", lambda world=world: world)
        for size, accumulation in accepted:
            check_global_batch(run, LoopConfig(batch_size=size, accumulation=accumulation))
        with pytest.raises(UserError, match=remedy):
            check_global_batch(run, LoopConfig(batch_size=refused[0], accumulation=refused[1]))

    (run / "checkpoints" / "step-10" / "position.json").unlink()  # as a checkpoint of an older version
    with pytest.raises(UserError, match="--run_dir"):
        check_global_batch(run, LoopConfig(batch_size=8))


def test_an_export_is_kept_where_it_is_of_the_same_weights_and_no_other(tmp_path, capsys):
    folder, written = tmp_path / "model", []

    def found():
        if not written:
            raise UserError("no model here")
        return written[-1]

    # Twice the same run, then it was continued, and killed before it could export: the folder is of other weights.
    for own in ("first", "first", "second"):
        export_once(folder, own, found, lambda own=own: written.append(own))
    assert written == ["first", "second"]
    lines = capsys.readouterr().out.splitlines()
    assert [name for line in lines for name in ("first", "second") if name in line] == ["first", "first", "second"]
    assert ["done" in line for line in lines] == [False, True, False]


def test_schedule_rises_to_the_peak_and_falls_to_its_minimum():
    optim = OptimConfig(lr=1.0, warmup_steps=10, min_lr_ratio=0.1)
    rates = [optim.rate(step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0) and np.argmax(rates) in (9, 10)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))


def test_a_logged_mean_cannot_straddle_a_resume():
    with pytest.raises(ValueError, match="checkpoint_every"):
        LoopConfig(log_every=10, checkpoint_every=25)


def test_metrics_are_plain_json_lines(tmp_path):
    run = RunFolder(tmp_path / "run", Config())
    run.log(1, {"loss": 0.5})
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
