"""The demo's script: it stops where a step fails, runs twice, and makes its page of the files alone."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
demo = importlib.util.module_from_spec(SPEC)
sys.modules["demo"] = demo  # dataclasses look their module up
SPEC.loader.exec_module(demo)


def writes(name, path, code=0):
    program = f"import pathlib, sys; pathlib.Path({str(path)!r}).write_text('x'); sys.exit({code})"
    return demo.Step(name, ("python", "-c", program), path)


def test_it_stops_at_the_first_failure_and_continues_there(tmp_path):
    first, bad, last = (tmp_path / name for name in ("first", "bad", "last"))
    log = tmp_path / "seconds.json"
    with pytest.raises(UserError, match="second.*3"):
        demo.run_steps([writes("first", first), writes("second", bad, 3), writes("third", last)], log)
    assert first.exists() and not last.exists()
    record = json.loads(log.read_text())
    assert [record[name]["finished"] for name in ("first", "second")] == [True, False] and "third" not in record
    bad.unlink()
    seconds = demo.run_steps([writes("first", first), writes("second", bad), writes("third", last)], log)
    assert last.exists() and list(seconds) == ["first", "second", "third"]
    assert seconds["second"] > record["second"]["seconds"]  # both of its starts count


def test_a_second_start_does_not_change_the_seconds(tmp_path):
    steps = [writes("first", tmp_path / "a"), writes("second", tmp_path / "b")]
    log = tmp_path / "seconds.json"
    assert demo.run_steps(steps, log) == demo.run_steps(steps, log)


def test_the_commands_are_those_of_the_console(tmp_path):
    from medunifier.__main__ import COMMANDS

    steps = demo.steps_of(demo.DemoConfig(run_dir=str(tmp_path), stage1_steps=7))
    for step in steps:
        if step.command[0] == "medunifier":
            assert step.command[1] in COMMANDS
        else:
            assert step.command[:2] == ("accelerate", "launch")
            assert any((ROOT / part).is_file() for part in step.command if part.endswith("train.py"))
    assert "--loop.steps 7" in " ".join(steps[2].command) and "--loop.steps" not in " ".join(steps[4].command)


def test_metrics_and_page_are_made_of_a_run_s_files(tmp_path):
    metrics = {name: least for name, least in demo.THRESHOLDS.items()}
    metrics |= {f"{name}.baseline": 0.1 for name in demo.THRESHOLDS}
    evaluation = {
        "task": "all",
        "metrics": metrics,
        "data": {"source": "phantom", "counts": {"train": 5}},
        "details": {"tokenizer": {"examples": [], "intervals": {}}},
        "versions": {"python": "3"},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    for stage in ("stage1", "stage2"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text('{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.0}\n')
    demo.write_results(tmp_path, {"phantom": 1.04})
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: content[name] for name in metrics} == metrics
    assert content["seconds"] == {"phantom": 1.0} and content["machine"]["cores"] >= 1
    page = (tmp_path / "index.html").read_text()
    assert "Phantom data" in page and "<polyline" in page and ">no<" not in page
    assert page.count("<td>tokenizer.psnr") == 1, "not in the table of thresholds and in that of its task"


def test_an_unknown_option_is_one_line(capsys):
    assert run_command(demo.main, ["--study", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_whole_demo_in_small(tmp_path):
    command = [sys.executable, "scripts/demo.py", "--run_dir", str(tmp_path / "run"), "--studies", "300"]
    command += ["--stage1_steps", "20", "--stage2_steps", "10"]
    subprocess.run(command, cwd=ROOT, check=True)
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for name in demo.THRESHOLDS:
        assert {name, f"{name}.baseline"} <= content.keys()
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "evaluation.json is there already" in again.stdout
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds"] == content["seconds"]
