"""Ctrl-C and SIGTERM at any moment of a training: one line, the right exit code, complete or absent files."""

import json
import os
import signal
import subprocess
import sys
import time
from textwrap import dedent, indent

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from medunifier.shared.command import interruption, run_command
from medunifier.shared.files.row_file import RowFile
from medunifier.shared.files.settings_record import begin_or_continue
from medunifier.shared.progress import Progress
from medunifier.shared.training.checkpoints import Checkpoints
from medunifier.shared.training.config import LoopConfig
from medunifier.shared.training.loop import train
from medunifier.shared.training.run_folder import CHECKPOINTS, RunFolder
from medunifier.stage1_tokenizer.train import main
from tests.stage1_tokenizer.conftest import write_image_shards
from tests.two_processes import free_port

# Without torch, and so fast: what happens to an exception at these moments does not depend on it.
MOMENTS = {
    "an import that turns any error into its own": """
        try:
            reached(); time.sleep(60)
        except BaseException as error:
            raise ImportError("C extension failed") from error""",
    "a library that swallows it": """
        while True:
            try:
                reached(); time.sleep(60)
            except BaseException:
                pass""",
    "a checkpoint half written": """
        from medunifier.shared.artifacts import atomic_folder
        with atomic_folder("step-1") as partial:
            (partial / "a").write_text("half")
            reached(); time.sleep(60)""",
}
SCRIPT = """
import os, sys, time
from medunifier.shared.command import run_training

def reached():
    print("here", flush=True)

def command(argv):
{moment}

run_training(command, [])
"""


def environment(root, **more):
    return os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | more


def interrupted(process, number):
    """Signal the process group, as a terminal does; return the exit code and the lines of standard error."""
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    return process.returncode, error.splitlines()


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_is_one_line_at_any_moment(moment, root, tmp_path):
    code = SCRIPT.format(moment=indent(dedent(MOMENTS[moment]), " " * 4))
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment(root), cwd=tmp_path, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout.readline() == "here\n"
        returned, lines = interrupted(process, number)
        assert returned == 128 + number and len(lines) == 1 and "interrupted" in lines[0], lines
    assert not (tmp_path / "step-1").exists()


@pytest.fixture
def image_shards(tmp_path):
    return write_image_shards(tmp_path / "shards")


def options(shards, run):
    return [
        "--config=cxr_64", f"--data.shards={shards}", f"--run_dir={run}", "--loop.workers=1", "--loop.threads=1",
        "--model.resolution=32", "--model.ch=16", "--loop.log_every=2", "--loop.checkpoint_every=2",
        "--loop.steps=4000",
    ]  # fmt: skip


def start(command, root, folder):
    """Start a training from another folder, and wait until it has logged its first steps."""
    process = subprocess.Popen(
        [sys.executable, *command], env=environment(root, HOME=str(folder)), cwd=folder, start_new_session=True,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline, logged = time.monotonic() + 120, folder / "run" / "metrics.jsonl"
    while not logged.exists() or not logged.stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


# SIGTERM ends other work alike in the tests above.
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_training_saves_its_steps_before_the_first_checkpoint_and_ends_in_a_line(
    number, root, tmp_path, image_shards, no_curves, capsys
):
    command = [*options(image_shards, tmp_path / "run"), "--loop.checkpoint_every=1000"]
    process = start(["-m", "medunifier", "train", "stage1", *command], root, tmp_path)
    assert "loading" in process.stdout.readline()
    assert any("parameters" in process.stdout.readline() for _ in range(2))
    code, lines = interrupted(process, number)
    assert code == 128 + number and len(lines) == 2, lines
    assert "1/4000" in lines[0] and "ETA" in lines[0] and "l1 " in lines[0], lines
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert step >= 2 and f"continues from step {step}" in lines[1]
    assert json.loads((saved / "position.json").read_text())["samples"] % step == 0
    assert all(json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert run_command(main, [*command, f"--loop.steps={step + 2}", "--loop.workers=0"]) == 0
    assert f"at step {step}\n" in capsys.readouterr().out


def test_a_second_signal_ends_a_deferred_interrupt_and_a_copy_of_the_first_does_not(root, tmp_path):
    moment = """
        from medunifier.shared.command import interruption
        interruption.deferred = lambda: print("deferred", flush=True)
        reached()
        while True:
            time.sleep(0.01)"""
    code = SCRIPT.format(moment=indent(dedent(moment), " " * 4))
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(root), cwd=tmp_path, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "deferred\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert process.poll() is None
    code, lines = interrupted(process, signal.SIGINT)
    assert code == 130 and len(lines) == 1


class Validated:
    """A task that is interrupted in its validation: while a batch is read, or while one is processed."""

    def __init__(self, while_reading):
        self.while_reading, self.processed = while_reading, 0

    def step(self, micro_batches, step):
        return {"loss": torch.tensor(1.0)}

    def validate(self, step):
        for number in interruption.between(self._batches()):
            if number == 3 and not self.while_reading:
                interruption._handle(signal.SIGINT, None)
            self.processed += 1
        return {}

    def _batches(self):
        for number in range(10):
            if number == 3 and self.while_reading:
                interruption._handle(signal.SIGINT, None)
            yield number


def test_an_interrupt_during_validation_saves_the_steps_done(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "end", sys.exit)
    config = LoopConfig(steps=12, log_every=2, validate_every=4, checkpoint_every=12)
    for while_reading, processed in ((True, 3), (False, 4)):
        monkeypatch.setattr(interruption, "pending", None)
        task, folder = Validated(while_reading), tmp_path / str(while_reading)
        with pytest.raises(SystemExit):
            train(task, Accelerator(cpu=True), RunFolder(folder, config), lambda _: iter(lambda: None, 1), config)
        assert task.processed == processed and Checkpoints(folder / CHECKPOINTS).latest() == 4
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_validation_is_announced(tmp_path, monkeypatch, no_curves):
    bars, shown = [], []

    class Recorded(Progress):
        def __enter__(self):
            bars.append(self)
            return super().__enter__()

    class Task:
        def step(self, micro_batches, step):
            return {"loss": torch.tensor(1.0)}

        def validate(self, step):
            shown.append(bars[0]._status())
            return {}

    monkeypatch.setattr("medunifier.shared.training.loop.Progress", Recorded)
    config = LoopConfig(steps=2, log_every=1, validate_every=1, checkpoint_every=2)
    train(Task(), Accelerator(cpu=True), RunFolder(tmp_path, config), lambda _: iter(lambda: None, 1), config)
    assert ["validating" in line for line in shown] == [True, True] and "validating" not in bars[0]._status()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_only_begun_work_is_said_to_continue(tmp_path, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    def begin(_):
        with RowFile(str(tmp_path / "rows.jsonl"), {}, [], lambda row: [row]):
            raise KeyboardInterrupt

    def begin_folder(_):
        begin_or_continue(tmp_path / "out" / "plan.json", {})
        raise KeyboardInterrupt

    for command, continues in ((begin, True), (interrupt, False), (begin_folder, True), (interrupt, False)):
        assert run_command(command, []) == 130
        (line,) = capsys.readouterr().err.splitlines()
        assert ("continues" in line) == continues


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_several_processes_end_in_one_line_too(number, root, tmp_path, image_shards):
    several = ["--num_processes", "2", "--main_process_port", str(free_port())]
    process = start(["-m", "medunifier", "train", "stage1", *options(image_shards, "run"), *several], root, tmp_path)
    code, lines = interrupted(process, number)
    assert code == 128 + number and sum("interrupted" in line for line in lines) == 1
    assert not [line for line in lines if "Traceback" in line or "W1" in line[:2]], lines


def test_a_child_that_ends_with_the_signal_raises_no_complaint(monkeypatch):
    monkeypatch.setattr(interruption, "deferred", lambda: None)
    monkeypatch.setattr(interruption, "pending", None)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        interruption._handle(signal.SIGTERM, None)
        assert callable(signal.getsignal(signal.SIGCHLD)), "Python prints an error if it is SIG_DFL by then"
    finally:
        signal.signal(signal.SIGCHLD, before)
