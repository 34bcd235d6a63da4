"""``medunifier bench NAME``: compare our code with a peer in one run. A benchmark is ``scripts/benchmarks/NAME.py``.

A benchmark has a function ``rows(config)``, or ``run(config)`` if it prints and writes its own table (``gpu``).
It may define a dataclass ``Config`` in place of :class:`BenchConfig`, with at least ``out`` and ``threads``.

Times differ between machines, and over an hour on a shared machine. So ours and the peer run alternately, and the
median of the paired ratios is reported.
"""

import ast
import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from medunifier.shared.artifacts import write_json
from medunifier.shared.config import Subcommand, parse_subcommand
from medunifier.shared.files.os_services import usable_cores
from medunifier.shared.progress import Progress
from medunifier.shared.training.hardware import processor_name

BENCHMARKS = Path(__file__).resolve().parents[1] / "scripts" / "benchmarks"


@dataclass(frozen=True)
class Row:
    """One comparison. ``ratio`` above 1: ours is better; ``target``: the required ratio, or None."""

    what: str
    ours: float
    peer: float
    ratio: float
    target: float | None = None


@dataclass(frozen=True)
class BenchConfig:
    """Compare with a peer in the same run; NAME is that of a file under scripts/benchmarks."""

    out: str = ""
    """File for the table, NAME.json; empty = print it alone."""
    rounds: int = 7
    """Turns that each side takes, after one that is not counted."""
    threads: int = 0
    """CPU threads; 0 = all cores."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")


def paired(
    what: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    config: BenchConfig,
    target: float | None = None,
    units: float = 1.0,
) -> Row:
    """Time two callables alternately.

    Args:
        what: what is compared, with its unit ("training step, steps/s").
        ours, peer: do the same work.
        config: rounds.
        target: target ratio.
        units: amount of work in a call; the row shows units a second.
    """
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    with Progress(config.rounds + 1, what, "rounds") as progress:
        for round_ in range(config.rounds + 1):
            for name, work in (("ours", ours), ("peer", peer)):
                start = time.perf_counter()
                work()
                if round_:  # the first warms up allocators, caches and page tables
                    seconds[name].append(time.perf_counter() - start)
            progress.advance()
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
    rates = {name: units / statistics.median(values) for name, values in seconds.items()}
    return Row(what, rates["ours"], rates["peer"], ratio, target)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    return {
        "cpu": processor_name(),
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``medunifier bench NAME [--out FILE.json]``.

    Raises:
        UsageError: for an unknown benchmark or option.
    """
    arguments = list(argv or [])
    commands: dict[str, Subcommand] = {}
    for path in sorted(BENCHMARKS.glob("*.py")):
        # Only the benchmark that runs is imported: most of them load torch, and some their peer.
        module = load_benchmark(path.stem) if arguments[:1] == [path.stem] else None
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        commands[path.stem] = Subcommand(getattr(module, "Config", BenchConfig), docstring.partition("\n")[0])
    name, config = parse_subcommand(
        commands,
        arguments,
        prog="medunifier bench",
        metavar="NAME",
        description="Compare with a peer in the same run.",
    )
    benchmark = load_benchmark(name)
    if hasattr(benchmark, "run"):
        benchmark.run(config)
        return
    import torch

    torch.set_num_threads(config.threads or usable_cores())
    rows: list[Row] = benchmark.rows(config)
    for row in rows:
        target = "" if row.target is None else f"   (target {row.target:g})"
        print(f"{row.what}: ours {row.ours:.4g}, peer {row.peer:.4g}, ratio {row.ratio:.2f}{target}")
    if config.out:
        write_json(config.out, {"name": name, "machine": machine(), "rows": [asdict(row) for row in rows]})


def load_benchmark(name: str) -> ModuleType:
    """Import ``scripts/benchmarks/NAME.py`` once."""
    if f"benchmark_{name}" in sys.modules:
        return sys.modules[f"benchmark_{name}"]
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None  # noqa: S101 - narrows a type
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks up the names in its annotations
    spec.loader.exec_module(module)
    return module
