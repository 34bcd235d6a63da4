"""The ablation benchmark: the commands of its trainings, what is not repeated, and its page."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from medunifier.bench import load_benchmark
from medunifier.shared.artifacts import write_json
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.training.config import Stage2Config


@pytest.fixture
def bench(monkeypatch):
    """The benchmark without trainings and evaluations: only their commands are recorded, and a figure is
    0.5 with seed 0 and 0.7 with seed 1."""
    module = load_benchmark("ablations")
    module.commands = []

    def run(command, **_):
        module.commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    def evaluate(task, config, *_):
        value = 0.7 if "seed-1" in config.model else 0.5
        metrics = dict.fromkeys(module.METRICS[task], value)
        intervals = {metric: [value - 0.1, value + 0.2] for metric in metrics}
        return {"metrics": metrics, "details": {task: {"intervals": intervals}}}

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(module, "load_model", lambda *_: (None, None))
    monkeypatch.setattr(module, "evaluate", evaluate)
    return module


@pytest.fixture
def config(bench, tmp_path):
    write_json(tmp_path / "images" / "manifest.json", {"source": "phantom"})
    paths = {name: str(tmp_path / name) for name in ("runs", "images", "codes", "tokenizer")}
    return lambda **changes: bench.Config(str(tmp_path / "a.json"), **paths | {"steps": 6} | changes)


def parsed(command):
    """The configuration that the training script gets from a command."""
    return parse_config(Stage2Config, command[command.index("stage2_unified/train.py") + 1 :])


def test_each_training_leaves_out_the_objectives_that_its_name_says(bench, config):
    bench.rows(config())
    trainings = {Path(training.run_dir).name: training for training in map(parsed, bench.commands)}
    assert len(trainings) == len(bench.RUNS)
    for folder, training in trainings.items():
        name = folder.removesuffix("-seed-0")
        kept = {objective for objective in bench.OBJECTIVES if getattr(training.weights, objective) > 0}
        if name.endswith("-alone"):
            assert kept == {name.removesuffix("-alone")}
        else:
            assert kept == set(bench.OBJECTIVES) - {name.rpartition("without-")[2]}, name
        assert training.loop.steps == 6
        assert training.model.bidirectional_images == name.endswith("both-directions")
        assert bool(training.data.statements) == ("statements" in name)
        assert bool(training.ema_decay) == ("averaged" in name)
        assert (training.model.experts != "none") == ("experts" in name)
        assert (training.optim.balance != "none") == ("balanced" in name)
        assert (training.schedule.generate_from > 0) == ("first" in name)


def test_a_finished_run_is_not_trained_again(bench, config, capsys):
    assert bench.rows(config(only=("image alone",))) == []  # nothing to compare with yet
    assert "all four" in capsys.readouterr().out
    rows = bench.rows(config())
    trained = len(bench.commands)
    assert trained == len(bench.RUNS)
    assert bench.rows(config()) == rows and len(bench.commands) == trained


def test_the_page_shows_no_figure_that_a_run_was_not_trained_for_and_no_path(bench, config, tmp_path):
    bench.rows(config())
    page = (tmp_path / "a.md").read_text()
    (alone,) = [line for line in page.splitlines() if line.startswith("| image alone")]
    assert alone.count("–") == len(bench._metrics()) - 1 and alone.count("0.500 [0.400, 0.700]") == 1
    assert str(tmp_path) not in page


def test_a_cell_is_the_mean_of_the_seeds_with_their_spread_and_the_mean_interval(bench, config, tmp_path):
    bench.rows(config(seeds=2, only=("all four",)))
    trainings = [parsed(command) for command in bench.commands]
    assert [training.loop.seed for training in trainings] == [0, 1]
    assert len({training.run_dir for training in trainings}) == 2
    page = (tmp_path / "a.md").read_text()
    assert page.count("| 0.600 ± 0.100 [0.500, 0.800] ") == len(bench._metrics())


def test_a_failed_training_is_an_error_and_leaves_no_figures(bench, config, monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(run=lambda *_, **__: failed))
    with pytest.raises(UserError, match="failed.*same command continues"):
        bench.rows(config())
    assert not list(tmp_path.rglob("evaluation.json"))


def test_an_unknown_run_is_refused(config):
    with pytest.raises(ValueError, match="only.*everything"):
        config(only=("all four", "everything"))
