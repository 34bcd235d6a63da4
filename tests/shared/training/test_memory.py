"""The warning of a training that does not fit, before it starts."""

import pytest

from medunifier.shared.errors import UserError
from medunifier.shared.training import memory
from medunifier.shared.training.config import LoopConfig
from medunifier.shared.training.memory import Size, warn_if_too_large


@pytest.mark.parametrize(
    ("free", "expected"),
    [(100, []), (0, []), (60, ["--loop.batch_size 4 --loop.accumulation 2"]), (9, ["smaller preset"])],
)
def test_a_training_larger_than_the_machine_is_warned_of_with_a_remedy(free, expected, monkeypatch, capsys):
    gib = 2**30
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory, "memory_and_free", lambda: (200 * gib, free * gib))
    size = Size("x", 10**9, state=20 * gib, sample=10 * gib, use=gib, batch=8)
    warn_if_too_large(size, LoopConfig(batch_size=8))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected)
    assert all(words in line for line, words in zip(lines, expected, strict=True))


def test_a_training_asks_for_the_warning_before_it_reads_data(tmp_path, monkeypatch):
    from medunifier.stage1_tokenizer.train import main
    from medunifier.stage1_tokenizer.training import run

    asked = []
    monkeypatch.setattr(run, "warn_if_too_large", lambda size, loop: asked.append(size))
    with pytest.raises(UserError, match="absent"):
        main(["--config=demo", f"--data.shards={tmp_path / 'absent'}", f"--run_dir={tmp_path / 'run'}"])
    assert len(asked) == 1
