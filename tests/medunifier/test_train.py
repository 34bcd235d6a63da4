"""``medunifier train``: the launcher's options beside the training's, and what the machine decides."""

import pytest
import torch

from medunifier import train
from medunifier.shared.errors import UsageError


def test_options_of_the_launcher_are_separated_from_the_trainings():
    words = [
        "stage1",
        "--num_processes",
        "2",
        "--run_dir",
        "r",
        "--machine-rank=1",
        "--loop.steps",
        "3",
        "--",
        "--gpu_ids",
        "0,1",
    ]
    training, launcher = train.split_launcher_options(words)
    assert training == ["stage1", "--run_dir", "r", "--loop.steps", "3"]
    assert launcher == ["--gpu_ids", "0,1", "--num_processes", "2", "--machine-rank=1"]


def test_the_launcher_receives_what_it_would_warn_of_and_the_users_options_stay():
    assert {"--num_processes=1", "--num_machines=1", "--dynamo_backend=no", "--mixed_precision=no"} <= set(
        train.launcher_options([], gpus=0)
    )
    assert "--num_processes=4" in train.launcher_options([], gpus=4)
    words = train.launcher_options(["--num-processes", "2"], gpus=4)
    assert not [word for word in words if word.startswith("--num_processes")]
    with_file = train.launcher_options(["--config_file", "ddp.yaml"], gpus=4)
    assert not [word for word in with_file if word.startswith("--num_")], "the file decides"


def run(monkeypatch, tmp_path, gpus, bf16, *options):
    """Run the command up to the training or the launcher; return the precision or the launcher's arguments."""
    got = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(
        "medunifier.stage1_tokenizer.training.run.train_tokenizer",
        lambda config: got.update(precision=config.loop.mixed_precision),
    )
    monkeypatch.setattr(train, "start_accelerate", lambda *arguments: got.update(launched=arguments))
    train.main(["stage1", f"--data.shards={tmp_path}", f"--run_dir={tmp_path / 'run'}", *options])
    return got


def test_one_process_trains_here_and_several_gpus_start_as_many(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, 0, False) == {"precision": "no"}
    options, module, arguments = run(monkeypatch, tmp_path, 2, True)["launched"]
    assert "--num_processes=2" in options and module == "medunifier.stage1_tokenizer.train"
    assert "stage1" not in arguments and "--loop.mixed_precision=bf16" in arguments
    assert "launched" in run(monkeypatch, tmp_path, 0, False, "--num_processes", "2")


def test_bf16_is_used_on_gpus_that_have_it_unless_the_precision_is_set(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, 1, True)["precision"] == "bf16"
    assert run(monkeypatch, tmp_path, 1, True, "--config", "demo")["precision"] == "bf16"
    assert run(monkeypatch, tmp_path, 1, False)["precision"] == "no"
    assert run(monkeypatch, tmp_path, 1, True, "--loop.mixed_precision=no")["precision"] == "no"
    (tmp_path / "c.yaml").write_text("loop:\n  mixed_precision: 'no'\n")
    assert run(monkeypatch, tmp_path, 1, True, f"--config={tmp_path / 'c.yaml'}")["precision"] == "no"


def test_an_invalid_configuration_is_refused_before_a_process_starts(monkeypatch, tmp_path):
    for wrong in (["--loop.stesp=3"], ["--config", "cxr_f61"], ["--num_proceses", "2"]):
        with pytest.raises(UsageError, match="mean"):
            run(monkeypatch, tmp_path, 2, True, *wrong)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="accelerate"):
        train.start_accelerate(["--nope"], "m", [])
