"""Plain progress lines: from the first unit on, with an ETA and figures, and no line twice."""

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
