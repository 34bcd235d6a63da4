"""Timing on the device's own clock, graphs compiled, peak memory, FLOP counts, and the profile of a step."""

import importlib.metadata
import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medunifier.bench import machine
from medunifier.gpu_bench.sizes import IDLE, Setting
from medunifier.shared.files.os_services import peak_memory
from medunifier.shared.training.hardware import GIB

TOP_KERNELS = 8
PROFILED_STEPS = 2
_IDLE_SECONDS = 5.0

Work = Callable[[int], Any]


def mark(device: str) -> Any:
    """Return a mark after the work that was started so far: an event in the GPU's stream; a host time on a CPU."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(marks: list[Any], device: str) -> list[float]:
    """Wait for the device and return the seconds from each mark to the next."""
    synchronize(device)
    pairs = zip(marks, marks[1:], strict=False)
    return [start.elapsed_time(end) / 1e3 if device == "cuda" else end - start for start, end in pairs]


def synchronize(device: str) -> None:
    """Wait for the work on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Warm:
    """Seconds of each call of a warm-up on the host, and the graphs compiled in it."""

    seconds: list[float]
    graphs: int


def warm_up(work: Work, calls: int, device: str) -> Warm:
    """Call ``work(0)`` to ``work(calls - 1)``; the first ones compile."""
    of_process, seconds = counters["stats"], []
    before = of_process["unique_graphs"]
    for number in range(calls):
        start = time.perf_counter()
        work(number)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Warm(seconds, of_process["unique_graphs"] - before)


def time_calls(work: Work, calls: int, device: str) -> float:
    """Return the median seconds of a call. The host does not wait between the calls."""
    synchronize(device)
    marks = [mark(device)]
    for number in range(calls):
        work(number)
        marks.append(mark(device))
    return statistics.median(seconds_between(marks, device))


def measure(work: Work, warm: Warm, setting: Setting, profiled: bool = False) -> tuple[float, dict[str, Any]]:
    """Measure warmed-up calls.

    Returns:
        Median seconds of a call, and the details: ``ms``, peak memory, ``compile_s`` (what the warm-up took above
        the time of its calls), ``graphs``, and with ``profiled`` the profile.
    """
    sizes, device = setting.sizes, setting.device
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    calls = max(3, min(sizes.steps, int(sizes.seconds / max(warm.seconds[-1], 1e-9))))
    seconds = time_calls(work, calls, device)
    details = {
        "ms": seconds * 1e3,
        "peak_memory_gib": (torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()) / GIB,
        "compile_s": sum(max(0.0, call - seconds) for call in warm.seconds),
        "graphs": warm.graphs,
    }
    return seconds, details | ({"profile": profile(work, device)} if profiled else {})


def idle_share(setting: Setting) -> float:
    """Wait until a matrix product runs at the rate at which it ran alone, but 5 seconds at most.

    Returns:
        The rate over ``setting.peak``; below :data:`IDLE` other processes use the GPU. 1 on a CPU.
    """
    if setting.device != "cuda":
        return 1.0
    deadline, share = time.monotonic() + _IDLE_SECONDS, 0.0
    while share < IDLE and time.monotonic() < deadline:
        share = matmul_flops(setting.device, 8192) / setting.peak
    return share


def count_flop(work: Callable[[], Any]) -> float:
    """Return the FLOP of matrix products and convolutions in ``work``, uncompiled; a multiply-add counts as two."""
    # Without cuDNN's benchmark, which would try every algorithm for shapes that are run once.
    with torch.compiler.set_stance("force_eager"), torch.backends.cudnn.flags(enabled=True), _FlopCount() as count:
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
    cuda = device == "cuda"
    if cuda and not torch.cuda.is_available():
        return None
    return {
        **machine(),
        **{name: importlib.metadata.version(name) for name in ("transformers", "accelerate")},
        "driver": _driver() if cuda else None,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / GIB if cuda else 80.0,
        "matmul_tflops": matmul_flops(device, 8192 if cuda else 64) / 1e12,
    }


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, None where it is unknown."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", path.read_text(encoding="utf-8")) if path.is_file() else None
    return found.group() if found else None


def profile(work: Work, device: str) -> dict[str, Any]:
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
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text(encoding="utf-8", errors="replace"))["traceEvents"]
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
    times: dict[str, list[float]] = defaultdict(list)
    for name, start, end in intervals:
        busy += max(0.0, end - max(start, covered))
        covered = max(covered, end)
        times[name].append(end - start)
    span = covered - intervals[0][1]
    total = sum(map(sum, times.values())) or 1.0
    top = sorted(times.items(), key=lambda item: -sum(item[1]))[:TOP_KERNELS]
    return {
        "span_ms": span / 1e3,
        "idle_share": 1 - busy / span if span else 0.0,
        "kernels": len(intervals),
        "top": [{"name": name[:120], "calls": len(of), "share": sum(of) / total} for name, of in top],
    }
