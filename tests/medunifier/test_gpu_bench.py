"""``bench gpu``: the rehearsal runs every row on a CPU; profile arithmetic; a measurement that fails ends alone."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from medunifier.bench import main as bench_main
from medunifier.gpu_bench import generation, measure, runner, tokenizer, unified
from medunifier.gpu_bench.command import Results
from medunifier.gpu_bench.measure import count_flop, idle_share, summarise, warm_up
from medunifier.gpu_bench.runner import Outcome, fits, fork_context, run_groups, stopped
from medunifier.gpu_bench.sizes import IDLE, REHEARSAL, Figures, Setting
from medunifier.gpu_bench.table import GROUPS, ROWS, UNCOMPILED, printed, table
from medunifier.shared.command import run_command

NOT_ON_A_BARE_GPU_MACHINE = (
    "pydicom", "pylibjpeg", "webdataset", "taming", "gradio", "rouge_score", "tensorboard", "distributed", "onnx",
)  # fmt: skip
"""Packages that training on a GPU does not need; the rehearsal runs without them."""

WITHOUT = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        absent = name.split(".")[0] in {NOT_ON_A_BARE_GPU_MACHINE!r}
        return None if absent else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
"""


OURS_AND_PEER = ("stage2", "stage2_stock")


@pytest.mark.parametrize("groups", [OURS_AND_PEER, pytest.param(tuple(GROUPS), marks=pytest.mark.slow)])
def test_the_rehearsal_measures_every_row(groups, root, tmp_path):
    """One test for one run, since two processes that share out the tests would run it twice."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "medunifier",
            "bench",
            "gpu",
            "--rehearse",
            f"--out={tmp_path / 'gpu.json'}",
            f"--rows={','.join(groups)}",
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    expected = {row for group in groups for row in GROUPS[group].rows}
    assert [row["row"] for row in results["rows"]] == [row for row in ROWS if row in expected]
    assert not [row["error"] for row in results["rows"] if row["error"]]
    for row in results["rows"]:
        assert row["ours"] > 0 and row["what"] in run.stdout
        assert (row["ratio"] is None) == (row["target"] is None)
    check_header(results)
    check_training_rows({row["row"]: row for row in results["rows"]})


def check_header(results):
    """The results state machine, versions and date."""
    assert results["rehearsal"] is True and results["name"] == "gpu" and results["seconds"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", results["date"])
    assert results["machine"].keys() >= {
        "cpu", "cores", "gpu", "driver", "memory_gib", "python", "torch", "transformers", "accelerate",
    }  # fmt: skip


def check_training_rows(rows):
    """Each training step has MFU, memory, compilation and a profile."""
    for name in {"stage1", "stage2", "large", "stage2_stock", "stage1_taming"} & rows.keys():
        details = rows[name]["details"]
        assert details["mfu"] > 0 and details["peak_memory_gib"] > 0 and details["compile_s"] >= 0
        profile = details["profile"]
        assert 0 <= profile["idle_share"] < 1 and len(profile["top"]) == 8
        assert 0 < sum(kernel["share"] for kernel in profile["top"]) <= 1 + 1e-9
    assert rows["stage2"]["peer"] == rows["stage2_stock"]["ours"]
    assert rows["stage2_of_stock"]["ours"] == pytest.approx(rows["stage2"]["ours"] / rows["stage2_stock"]["ours"])
    assert 0 < rows["muon"]["ours"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    code = run_command(bench_main, ["gpu", f"--out={path}"])
    shown = capsys.readouterr()
    assert code == 2 and "no GPU" in shown.err and len(shown.err.splitlines()) == 1
    assert not shown.out and not path.exists()


def test_an_unknown_row_is_refused(capsys):
    assert run_command(bench_main, ["gpu", "--rows=stage3"]) == 2
    shown = capsys.readouterr().err
    assert "stage3" in shown and "stage1" in shown


def test_idle_time_is_the_span_outside_the_union_of_the_kernels():
    # 0-10, 5-12 overlapping, 6-8 inside, a gap of 8, 20-25.
    found = summarise([("b", 20, 25), ("a", 0, 10), ("a", 5, 12), ("c", 6, 8)])
    assert found["span_ms"] == pytest.approx(0.025) and found["kernels"] == 4
    assert found["idle_share"] == pytest.approx(8 / 25)
    assert [(kernel["name"], kernel["calls"]) for kernel in found["top"]] == [("a", 2), ("b", 1), ("c", 1)]
    assert found["top"][0]["share"] == pytest.approx(17 / 24)


def test_a_profile_without_kernels_is_idle():
    assert summarise([])["idle_share"] == 1


def test_flop_of_a_step_with_gradients_of_a_leaf_are_counted():
    weight, data = torch.ones(5, 7, requires_grad=True), torch.ones(3, 5)

    def step():
        leaf = (data @ weight).detach().requires_grad_()
        torch.autograd.grad((leaf @ torch.ones(7, 2)).sum(), leaf)

    assert count_flop(step) == 2 * 3 * 5 * 7 + 2 * (2 * 3 * 7 * 2)


def test_a_warm_up_counts_the_graphs_that_it_compiles():
    torch._dynamo.reset()
    compiled = torch.compile(lambda number: torch.ones(3) * number, backend="eager")
    assert warm_up(compiled, 2, "cpu").graphs >= 1
    assert warm_up(lambda number: compiled(1), 2, "cpu").graphs == 0
    assert warm_up(lambda number: torch.ones(3), 2, "cpu").graphs == 0


def measured(function, folder, **setting):
    """The figures of a measurement in this process."""
    measurement = function(Setting("cpu", REHEARSAL, str(folder), **setting))
    next(measurement)
    with pytest.raises(StopIteration) as stop:
        next(measurement)
    return stop.value.value


@pytest.fixture
def eager_backend(monkeypatch):
    """``torch.compile`` traces graphs and leaves them uncompiled."""
    compiler = torch.compile

    def traced(function, dynamic=None, **options):
        return compiler(function, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


COMPILED = [
    unified.train_stock,
    generation.reports,
    *(
        pytest.param(f, marks=pytest.mark.slow)
        for f in (tokenizer.train, tokenizer.tokenize, unified.train, generation.images)
    ),
]


@pytest.mark.parametrize("function", COMPILED, ids=lambda function: function.__name__)
def test_what_is_compiled_on_a_gpu_shows_its_graphs(function, tmp_path, eager_backend):
    found = measured(function, tmp_path, compile=True)
    assert found.keys() - UNCOMPILED and all(figures.details["graphs"] for figures in found.values())


def test_a_rate_without_graphs_is_an_error_on_a_gpu(tmp_path, capsys):
    header = {"name": "gpu", "machine": {}, "date": "2026-01-01", "commit": "c0"}
    for rehearsal in (False, True):
        path = tmp_path / f"{rehearsal}.json"
        results = Results(str(path), {**header, "rehearsal": rehearsal})
        results.add(
            Outcome("tokenize", {"encode": Figures(9.0, {"graphs": 1}), "decode": Figures(9.0, {"graphs": 0})})
        )
        results.add(Outcome("stage1_taming", {"stage1_taming": Figures(9.0, {"graphs": 0})}))
        rows = {row["row"]: row for row in json.loads(path.read_text())["rows"]}
        assert rows["encode"]["ours"] == rows["stage1_taming"]["ours"] == 9 and rows["encode"]["compiled"] is True
        assert (rows["decode"]["ours"], bool(rows["decode"]["error"])) == ((9, False) if rehearsal else (None, True))


def test_three_groups_that_fit_the_memory_run_side_by_side():
    memory = {name: group.memory for name, group in GROUPS.items()}
    assert fits(memory, [], "stage1", 80) and fits(memory, ["stage1"], "stage2", 80)
    assert not fits(memory, ["stage1", "stage2"], "large", 80) and fits(memory, [], "large", 1.0)
    assert not fits(memory, ["images", "reports", "tokenize"], "images_stock", 80)
    assert fits(memory, ["images", "reports"], "tokenize", 80)


def test_processes_of_other_groups_are_stopped_while_one_measures(tmp_path):
    counting = "while :; do echo >> %s; sleep 0.02; done"
    files = [tmp_path / "parent", tmp_path / "child"]
    script = f"({counting % files[1]}) & {counting % files[0]}"
    process = subprocess.Popen(["bash", "-c", script])
    group = runner._Running("images", process, fork_context(1).Pipe()[0], tmp_path / "log")
    process.join, process.exitcode = process.wait, None
    try:
        while not all(map(Path.is_file, files)):
            time.sleep(0.01)
        with stopped([group]):
            time.sleep(0.1)
            before = [path.stat().st_size for path in files]
            time.sleep(0.3)
            assert [path.stat().st_size for path in files] == before
        time.sleep(0.5)
        assert all(path.stat().st_size > size for path, size in zip(files, before, strict=True))
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        group.end()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive and process.poll() is not None


def test_a_measurement_waits_until_the_gpu_is_idle(monkeypatch):
    rates = iter([0.4e12, 0.5e12, 0.97e12])
    monkeypatch.setattr(measure, "matmul_flops", lambda device, size: next(rates))
    assert idle_share(Setting("cuda", REHEARSAL, "", peak=1e12)) == 0.97
    monkeypatch.setattr(measure, "matmul_flops", lambda device, size: 0.5e12)
    monkeypatch.setattr(measure, "_IDLE_SECONDS", 0.05)
    busy = idle_share(Setting("cuda", REHEARSAL, "", peak=1e12))
    assert busy < IDLE
    row = table({"images_1": Figures(1.0, {"gpu_idle": busy})}, {})["images_1"]
    assert "idle" in printed(row)


@pytest.fixture
def outcomes(tmp_path):
    """``outcomes(names, sizes, seconds)``: run groups and return their outcomes by name."""

    def run(names, sizes, seconds):
        found = {}
        run_groups(
            names, Setting("cpu", sizes, str(tmp_path)), fork_context(1), time.monotonic() + seconds, 100.0,
            lambda outcome: found.update({outcome.name: outcome}),
        )  # fmt: skip
        return found

    return run


def test_a_measurement_that_fails_ends_alone(outcomes):
    found = outcomes(["large", "stage2_stock"], replace(REHEARSAL, large=("--model.num_layers=none",)), 120)
    assert "num_layers" in found["large"].error and not found["large"].figures
    assert found["stage2_stock"].error is None and found["stage2_stock"].figures["stage2_stock"].value > 0


def test_what_is_not_ready_in_time_is_ended_and_the_rest_is_not_started(outcomes, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.0)
    start = time.monotonic()
    found = outcomes(["stage1"], replace(REHEARSAL, batch=4096), 2)
    assert time.monotonic() - start < 30 and found["stage1"].error and not found["stage1"].figures
    monkeypatch.setattr(runner, "LEAST_SECONDS", 20.0)
    assert outcomes(["stage1"], REHEARSAL, 2)["stage1"].error == "no time left"


def test_running_out_of_memory_is_distinguished_from_other_failures():
    assert runner.failure(torch.OutOfMemoryError("CUDA out of memory"))[1] == runner.NO_MEMORY
    kind, reason = runner.failure(RuntimeError("no compiler\nfound"))
    assert kind == runner.FAILED and "no compiler" in reason and "\n" not in reason


def test_a_ratio_of_at_least_one_meets_the_target():
    figures = {"stage1": Figures(1500.0), "stage2_memory": Figures(44.0)}
    rows = table(figures, {"large": "out of memory"})
    assert rows["stage1"]["ratio"] == 2 and "missed" not in printed(rows["stage1"])
    assert rows["stage2_memory"]["ratio"] == 0.5 and "missed" in printed(rows["stage2_memory"])
    assert rows["large"]["ours"] is None and "out of memory" in printed(rows["large"])
    assert rows.keys() == {"stage1", "stage2_memory", "large"}


def test_results_are_written_after_each_measurement_and_earlier_rows_stay(tmp_path, capsys):
    path = str(tmp_path / "gpu.json")
    header = {"name": "gpu", "machine": {"gpu": "A"}, "rehearsal": False, "date": "2026-01-01", "commit": "c0"}

    def rows():
        return {row["row"]: row for row in json.loads(Path(path).read_text())["rows"]}

    def figures(name, value):
        return Outcome(name, {name: Figures(value, {"graphs": 1})})

    results = Results(path, header)
    results.add(figures("stage2", 300.0))
    assert rows().keys() == {"stage2"}
    results.add(figures("stage1", 700.0))
    assert rows().keys() == {"stage1", "stage2"}
    later = Results(path, {**header, "date": "2026-01-02"})
    later.add(Outcome("stage1", {}, "out of memory"))
    later.add(figures("stage2_stock", 400.0))
    assert rows()["stage1"]["ours"] == 700 and rows()["stage1"]["date"] == "2026-01-01"
    # Peers may be measured by another command.
    assert rows()["stage2"]["peer"] == 400 and rows()["stage2_of_stock"]["ours"] == 0.75
    assert rows()["stage2_of_stock"]["date"] == "2026-01-02"
    Results(path, {**header, "machine": {"gpu": "B"}}).add(figures("large", 0.6))
    assert rows().keys() == {"large"}
    assert "out of memory" in capsys.readouterr().out and later.missing == ["stage1"]
