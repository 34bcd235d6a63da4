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
from medunifier.gpu_bench.sizes import FULL, REHEARSAL, Setting
from medunifier.gpu_bench.table import GROUPS, ROWS, UNCOMPILED, printed, relate, selected, table
from medunifier.shared.artifacts import read_json, write_json
from medunifier.shared.command import announce
from medunifier.shared.errors import UsageError, UserError
from medunifier.shared.files.os_services import usable_cores

_RESERVED_GIB = 3.0  # CUDA contexts of the processes


@dataclass(frozen=True)
class GpuConfig:
    """Measure rates, memory and profiles on one GPU.

    With 16 cores the time suffices for our own rows; run the others by a second command:
    `medunifier bench gpu --rows stage1,stage2,tokenize,images,reports` and
    `medunifier bench gpu --rows large,stage2_stock,images_stock,stage1_taming`.
    """

    out: str = "docs/results/gpu.json"
    """File for the results, written anew after every row."""
    rows: str = ""
    """Rows to measure, separated by commas (stage1,images_64); empty = all, ours first. The file keeps the others if
    they are of the same machine."""
    budget: float = 235.0
    """Seconds after which what still runs is ended, and its rows are named."""
    rehearse: bool = False
    """Run every row on the CPU with tiny sizes: the code, not its speed."""
    commit: str = ""
    """Commit of the code, where git does not know it."""
    threads: int = 0
    """Threads that compile for one row; 0 = all cores."""

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
        self._measured = {"date": header["date"], "commit": header["commit"]}
        self._rows: dict[str, dict[str, Any]] = {}
        self.missing: list[str] = []
        """Groups that were not measured."""
        if Path(path).is_file():
            saved = read_json(path, "results of `bench gpu`")
            if all(saved.get(name) == header[name] for name in ("name", "machine", "rehearsal")):
                self._rows = {row["row"]: row for row in saved["rows"]}

    def add(self, outcome: Outcome) -> None:
        """Print and write the rows of a measurement. A rate that was to be compiled and was not is an error."""
        figures, errors = dict(outcome.figures), dict[str, str]()
        if outcome.error:
            print(f"{outcome.name}: {outcome.log}", file=sys.stderr)
            errors = dict.fromkeys(GROUPS[outcome.name].rows, outcome.error)
            self.missing.append(outcome.name)
        for name, found in outcome.figures.items():
            if name not in UNCOMPILED and not self._header["rehearsal"] and not found.details.get("graphs"):
                del figures[name]
                errors[name] = "not compiled"
        ratio = self._rows.get("stage2_of_stock")
        new = {name: row | self._measured for name, row in table(figures, errors).items()}
        for name, row in new.items():
            if row["ours"] or not self._rows.get(name, {}).get("ours"):  # a failed row replaces no earlier figure
                self._rows[name] = row
        relate(self._rows)
        if self._rows.get("stage2_of_stock") is not ratio:
            new["stage2_of_stock"] = self._rows["stage2_of_stock"]
        for row in new.values():
            print(printed(row), flush=True)
        rows = [self._rows[name] for name in ROWS if name in self._rows]
        write_json(self._path, {**self._header, "seconds": time.monotonic() - self._start, "rows": rows})


def run(config: GpuConfig) -> None:
    """Measure the rows, print them and write the results file.

    Raises:
        UsageError: without a GPU, unless it is a rehearsal.
    """
    deadline = time.monotonic() + config.budget
    device, sizes = ("cpu", REHEARSAL) if config.rehearse else ("cuda", FULL)
    context, properties = _probe(device, config.threads or usable_cores())
    if properties is None:
        raise UsageError(
            "no GPU: torch finds no CUDA device. `medunifier bench gpu --rehearse` runs all rows on the CPU"
        )
    place = "rehearsal on the CPU, whose rates mean nothing" if config.rehearse else properties["gpu"]
    announce(f"{place}: {properties['matmul_tflops']:.3g} TFLOP/s in a bf16 matrix product; compiling …")
    results = Results(config.out, _header(config, properties))
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, sizes, folder, properties["matmul_tflops"] * 1e12)
        capacity = properties["memory_gib"] - _RESERVED_GIB
        run_groups(selected(config.names()), setting, context, deadline, capacity, results.add)
    if results.missing:
        announce(f"not measured; again with --rows {','.join(results.missing)}")
    announce(f"{config.out} written")


def _probe(device: str, threads: int) -> tuple[Context, dict[str, Any] | None]:
    """Return a context whose processes can use the device, and the device's properties; None without a GPU.

    With some versions an import initialises CUDA, which a fork does not survive: processes are then started afresh.
    """
    failure: Exception | None = None
    for context in (fork_context(threads), multiprocessing.get_context("spawn")):
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
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
