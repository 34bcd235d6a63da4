"""Options, results file and course of ``medunifier bench gpu``."""

import datetime
import multiprocessing
import subprocess
import sys
import tempfile
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunifier.gpu_bench.runner import Context, Outcome, call_by_name, fork_context, run_groups
from medunifier.gpu_bench.shards import write_shards
from medunifier.gpu_bench.sizes import FULL, REHEARSAL, Figures, Setting
from medunifier.gpu_bench.table import ROWS, derive, printed, selected, table
from medunifier.shared.artifacts import read_json, write_json
from medunifier.shared.command import announce
from medunifier.shared.errors import UsageError, UserError
from medunifier.shared.files.os_services import usable_cores

_RESERVED_GIB = 4.0  # CUDA contexts of the processes


@dataclass(frozen=True)
class GpuConfig:
    """Measure rates, memory and profiles on one GPU."""

    out: str = "docs/results/gpu.json"
    """File for the results, written anew after every row."""
    rows: str = ""
    """Rows to measure, separated by commas (stage1,images_64); empty = all. The file keeps the others if they are
    of the same machine."""
    budget: float = 235.0
    """Seconds after which what still runs is ended."""
    rehearse: bool = False
    """Run every row on the CPU with tiny sizes: the code, not its speed."""
    commit: str = ""
    """Commit of the code, where git does not know it."""
    threads: int = 0
    """Processes that write the image shards; 0 = all cores."""

    def __post_init__(self) -> None:
        selected(self.names())
        if self.budget <= 0:
            raise ValueError(f"budget must be positive, got {self.budget:g}")

    def names(self) -> list[str]:
        """Return the names in ``rows``."""
        return [name.strip() for name in self.rows.split(",") if name.strip()]


class Results:
    """Figures so far; printed and written whenever some are added.

    Args:
        path: the results file. Rows in it that were measured on the same machine stay until they are measured again.
        header: everything but the rows.
    """

    def __init__(self, path: str, header: dict[str, Any]) -> None:
        self._path, self._header, self._start = path, header, time.monotonic()
        self._figures: dict[str, Figures] = {}
        self._errors: dict[str, str] = {}
        self._printed: set[str] = set()
        self._earlier: list[dict[str, Any]] = []
        if Path(path).is_file():
            saved = read_json(path, "results of `bench gpu`")
            if all(saved.get(name) == header[name] for name in ("name", "machine", "rehearsal")):
                self._earlier = saved["rows"]

    def add(self, outcome: Outcome) -> None:
        """Print and write the rows of a measurement."""
        self._figures |= outcome.figures
        if outcome.error:
            self._errors[outcome.name] = outcome.error
            print(outcome.log, file=sys.stderr)
        derive(self._figures)
        rows = [
            {**row, "date": self._header["date"], "commit": self._header["commit"]}
            for row in table(self._figures, self._errors)
        ]
        for row in rows:
            if row["row"] not in self._printed:
                self._printed.add(row["row"])
                print(printed(row), flush=True)
        # A failed row does not replace an earlier figure.
        by_name = {row["row"]: row for row in [r for r in rows if r["error"]] + self._earlier}
        by_name |= {row["row"]: row for row in rows if not row["error"]}
        kept = [by_name[spec.name] for spec in ROWS if spec.name in by_name]
        write_json(self._path, {**self._header, "seconds": time.monotonic() - self._start, "rows": kept})


def run(config: GpuConfig) -> None:
    """Measure the rows, print them and write the results file.

    Raises:
        UsageError: without a GPU, unless it is a rehearsal.
    """
    deadline = time.monotonic() + config.budget
    device, sizes = ("cpu", REHEARSAL) if config.rehearse else ("cuda", FULL)
    groups = selected(config.names())
    context, properties = _probe(device)
    if properties is None:
        raise UsageError(
            "no GPU: torch finds no CUDA device. `medunifier bench gpu --rehearse` runs all rows on the CPU"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "tokenize" in groups:
            with ProcessPoolExecutor(config.threads or usable_cores(), mp_context=context) as executor:
                for kind, shards in (("few", sizes.few), ("all", sizes.shards)):
                    write_shards(executor, folder / kind, shards, sizes.shard_images, sizes.shard_size)
        place = "rehearsal on the CPU, whose rates mean nothing" if config.rehearse else properties["gpu"]
        announce(f"{place}: {properties['matmul_tflops']:.3g} TFLOP/s in a bf16 matrix product; compiling …")
        results = Results(config.out, _header(config, properties))
        setting = Setting(device, sizes, name, properties["matmul_tflops"] * 1e12)
        run_groups(groups, setting, context, deadline, properties["memory_gib"] - _RESERVED_GIB, results.add)
    announce(f"{config.out} written")


def _probe(device: str) -> tuple[Context, dict[str, Any] | None]:
    """Return a context whose processes can use the device, and the device's properties; None without a GPU.

    With some versions an import initialises CUDA, which a fork does not survive: processes are then started afresh.
    """
    failure: Exception | None = None
    for context in (fork_context(), multiprocessing.get_context("spawn")):
        try:
            with ProcessPoolExecutor(1, mp_context=context) as executor:
                return context, executor.submit(call_by_name, "measure:device_properties", device).result()
        except (RuntimeError, BrokenExecutor) as error:
            failure = error
    raise UserError(f"the GPU cannot be used: {' '.join(str(failure).split())[:300]}")


def _header(config: GpuConfig, properties: dict[str, Any]) -> dict[str, Any]:
    # The rate of the matrix product differs a little between runs.
    steady = {key: value for key, value in properties.items() if key != "matmul_tflops"}
    return {
        "name": "gpu",
        "rehearsal": config.rehearse,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": config.commit or _commit(),
        "machine": steady,
        "matmul_tflops": properties["matmul_tflops"],
    }


def _commit() -> str | None:
    """Return the commit of the repository that holds this file, None outside of one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - the user's git
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except OSError:
        return None
    return found.stdout.strip() or None
