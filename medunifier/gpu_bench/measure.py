"""Timing on the device's own clock, peak memory, FLOP counts, and the profile of a step."""

import importlib.metadata
import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medunifier.bench import machine
from medunifier.shared.files.os_services import peak_memory
from medunifier.shared.training.hardware import GIB

TOP_KERNELS = 8
PROFILED_STEPS = 2


class Clock:
    """Marks between pieces of work: events in the GPU's stream, which do not wait for it; host times on a CPU."""

    def __init__(self, device: torch.device | str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Set a mark after the work that was started so far."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Wait for the device and return the seconds from each mark to the next."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if not self._cuda:
            return [end - start for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def synchronize(device: torch.device | str) -> None:
    """Wait for the work on a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def warm_up(work: Callable[[int], Any], calls: int, device: str) -> list[float]:
    """Call ``work(0)`` to ``work(calls - 1)`` and return the host's seconds of each; the first ones compile."""
    seconds = []
    for number in range(calls):
        start = time.perf_counter()
        work(number)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def compile_seconds(warm: Iterable[float], steady: float) -> float:
    """Return the part of the warm-up's seconds that is above the steady time of a call."""
    return sum(max(0.0, seconds - steady) for seconds in warm)


def calls_within(seconds: float, last: float, most: int) -> int:
    """Return the number of calls of ``last`` seconds each that fit into ``seconds``: 3 to ``most``."""
    return max(3, min(most, int(seconds / max(last, 1e-9))))


def time_calls(work: Callable[[int], Any], calls: int, device: str) -> float:
    """Return the median seconds of a call. The host does not wait between the calls."""
    synchronize(device)
    clock = Clock(device)
    clock.mark()
    for number in range(calls):
        work(number)
        clock.mark()
    return statistics.median(clock.seconds())


def reset_memory(device: str) -> None:
    """Start the measurement of peak memory anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def memory(device: str) -> dict[str, float]:
    """Return peak GiB of tensors, and of what the allocator had reserved; on a CPU of the process."""
    if device == "cuda":
        return {
            "peak_memory_gib": torch.cuda.max_memory_allocated() / GIB,
            "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        }
    return {"peak_memory_gib": peak_memory() / GIB}


def count_flop(work: Callable[[], Any]) -> float:
    """Return the FLOP of matrix products and convolutions in ``work``, uncompiled; a multiply-add counts as two."""
    with torch.compiler.set_stance("force_eager"), _FlopCount() as count:
        work()
    return float(count.total)


class _FlopCount(TorchDispatchMode):
    """Torch's FLOP formulas. The module hooks of its own ``FlopCounterMode`` refuse ``autograd.grad`` of a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def matmul_flops(device: str, size: int, rounds: int = 10) -> float:
    """Return the FLOP/s of a square bfloat16 matrix product: the median of ``rounds``."""
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    warm_up(lambda _: matrix @ matrix, 3, device)
    return 2 * size**3 / time_calls(lambda _: matrix @ matrix, rounds, device)


def device_properties(device: str) -> dict[str, Any] | None:
    """Return machine, versions, driver, memory and the rate of a bfloat16 matrix product; None without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        return None
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "accelerate")}
    cuda = device == "cuda"
    rate = matmul_flops(device, 8192 if cuda else 64)
    return {
        **machine(),
        **versions,
        "driver": _driver() if cuda else None,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / GIB if cuda else 64.0,
        "matmul_tflops": rate / 1e12,
    }


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, None where it is unknown."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", text)
    return found.group() if found else None


def profile(work: Callable[[int], Any], device: str) -> dict[str, Any]:
    """Profile :data:`PROFILED_STEPS` calls: top kernels and idle time, see :func:`summarise`.

    On a CPU operators take the place of kernels, for the rehearsal.
    """
    activity, categories = ProfilerActivity.CPU, {"cpu_op"}
    if device == "cuda":
        # Without the operators, whose recording slows the host: the idle time would be that of the profiler.
        activity, categories = ProfilerActivity.CUDA, {"kernel", "gpu_memcpy", "gpu_memset"}
    with torch.profiler.profile(activities=[activity]) as profiler:
        for number in range(PROFILED_STEPS):
            work(number)
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return summarise(
        (event["name"], event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("ph") == "X" and event.get("cat") in categories
    )


def summarise(kernels: Iterable[tuple[str, float, float]]) -> dict[str, Any]:
    """Summarise kernels, each with its name, start and end in microseconds.

    Returns:
        ``span_ms`` from the first start to the last end; ``idle_share`` of the span in which no kernel runs, in
        [0, 1]; ``kernels``, their number; ``top``, the :data:`TOP_KERNELS` names with the most time, each with
        ``calls`` and its ``share`` of the summed kernel time. Kernels of several streams may overlap.
    """
    intervals = sorted(kernels, key=lambda kernel: kernel[1])
    if not intervals:
        return {"span_ms": 0.0, "idle_share": 1.0, "kernels": 0, "top": []}
    busy, covered = 0.0, intervals[0][1]
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for name, start, end in intervals:
        busy += max(0.0, end - max(start, covered))
        covered = max(covered, end)
        times[name] += end - start
        calls[name] += 1
    span, total = covered - intervals[0][1], sum(times.values())
    top = sorted(times, key=lambda name: -times[name])[:TOP_KERNELS]
    return {
        "span_ms": span / 1e3,
        "idle_share": 1 - busy / span if span else 0.0,
        "kernels": len(intervals),
        "top": [
            {"name": name[:120], "calls": calls[name], "share": times[name] / total if total else 0.0} for name in top
        ],
    }
