"""The ablations train what they say, judge what was taught, and make nothing twice."""

import subprocess
from types import SimpleNamespace

import pytest

from shared.artifacts import write_json
from shared.bench import load_benchmark
from shared.errors import UserError


@pytest.fixture
def bench(monkeypatch):
    """The benchmark with trainings that only note their command and figures that tell run and task apart."""
    module = load_benchmark("ablations")
    module.commands = []

    def run(command, **_):
        module.commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    def evaluate(task, options, *_):
        nth = len(module.commands)
        return {"metrics": {name: 0.1 * nth + 0.001 * len(task) for name in module.FIGURES[task]}}

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(module, "load_model", lambda *_: (None, None))
    monkeypatch.setattr(module, "evaluate", evaluate)
    return module


@pytest.fixture
def config(bench, tmp_path):
    write_json(tmp_path / "images" / "manifest.json", {"source": "phantom"})
    paths = {name: str(tmp_path / name) for name in ("runs", "images", "codes", "tokenizer")}
    return lambda **changes: bench.Config(str(tmp_path / "a.json"), **paths | {"steps": 7} | changes)


def test_each_run_leaves_out_what_its_name_says_and_is_made_once(bench, config, tmp_path, capsys):
    assert bench.rows(config(only="image alone")) == []  # nothing to stand beside yet
    assert "still to be trained: all four" in capsys.readouterr().out
    rows = bench.rows(config())
    assert len(bench.commands) == len(bench.RUNS) == 10
    zeroed = {
        command[command.index("--run_dir") + 1].rpartition("/")[2]: {
            part.removeprefix("--weights.").removesuffix("=0") for part in command if part.startswith("--weights.")
        }
        for command in bench.commands
    }
    assert zeroed["all-four"] == set() and zeroed["without-report"] == {"report"}
    assert zeroed["image-alone"] == {"contrast", "matching", "report"}
    both_ways = [command for command in bench.commands if "--model.bidirectional_images=true" in command]
    assert len(both_ways) == 1 and zeroed["all-four-images-read-in-both-directions"] == set()
    assert all(command[command.index("--loop.steps") + 1] == "7" for command in bench.commands)
    assert bench.rows(config()) == rows and len(bench.commands) == 10
    for row in rows:
        assert row.ratio == pytest.approx(row.ours / row.peer)
    page = (tmp_path / "a.md").read_text().splitlines()
    (alone,) = [line for line in page if line.startswith("| image alone")]
    assert alone.count("–") == 4  # it was taught to draw, and nothing else
    assert str(tmp_path) not in "\n".join(page)


def test_a_failed_training_is_told_and_leaves_nothing_judged(bench, config, monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(run=lambda *_, **__: failed))
    with pytest.raises(UserError, match="the same command continues it"):
        bench.rows(config())
    assert not list(tmp_path.rglob("judged.json"))


def test_weights_and_configuration_are_names_that_exist(bench, config, root):
    from stage2_unified.config import LossWeights

    assert set(bench.OBJECTIVES) <= set(LossWeights.__dataclass_fields__)
    assert (root / config().preset).is_file() and (root / "stage2_unified" / "train.py").is_file()
    with pytest.raises(ValueError, match="only must be one of"):
        config(only="everything")
