"""Plain progress lines: from the first unit on, with an ETA and figures, and no line twice."""

import io
import sys
import time

from rich.console import Console

from medunifier.shared.progress import Progress


def test_the_first_unit_and_the_end_are_shown_once_each(capsys):
    with Progress(4, "training", "step") as progress:
        progress.advance(1, loss=2.5)
        first = capsys.readouterr().err
        assert "1/4" in first and "loss 2.5" in first and "ETA" in first
        progress.advance(1, loss=2.0)
        progress.advance(2)
    (last,) = capsys.readouterr().err.splitlines()
    assert "4/4" in last and "ETA" not in last
    with Progress(1, "training", "step") as progress:
        progress.advance(1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_resumed_run_estimates_from_its_own_units(capsys):
    with Progress(1000, "training", "step", done=900) as progress:
        progress._start -= 10  # ten seconds ago
        progress.advance(50)
        assert "ETA 0:00:10" in capsys.readouterr().err


def test_a_narrow_terminal_shows_steps_rate_and_eta_before_long_figures(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    figures = {"loss": 44.251234, "contrast": 2.9971234, "generation": 9.1231234, "lm": 10.512345}
    with Progress(20000, "training", "step") as progress:
        progress._start -= 5
        progress.advance(1, **figures)
        for width in (60, 80, 200):
            console = Console(width=width, force_terminal=True, file=io.StringIO(), color_system=None)
            console.print(progress._bar.get_renderable())
            (line,) = console.file.getvalue().splitlines()
            for part in ("1/20000 step", "step/s", "ETA 27:4"):
                assert part in line, line
        assert "lm 10.51" in line


def test_other_work_is_named_and_does_not_count_for_the_rate(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(10, "training", "step") as progress:
        now += 2
        progress.advance(2)
        with progress.aside("validating"):
            now += 100
            assert progress._status().startswith("validating: 2/10")
        assert progress._status().startswith("training: 2/10") and "1 step/s" in progress._status()
        now += 8
        progress.advance(8)
        assert "1 step/s" in progress._status()
