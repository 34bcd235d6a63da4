"""Cores, memory, accelerators, peak FLOP/s and disk of this machine, within the limits of a container."""

import platform
import shutil
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from medunifier.shared.files.os_services import usable_cores

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30
# Dense bfloat16 with tensor cores, TFLOP/s, from data sheets; longer names first.
_BF16_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}
_MEASURED_SIZE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Accelerator:
    """One accelerator: ``cuda:0``, name, memory in bytes, and whether it computes in bfloat16."""

    device: str
    name: str
    memory: int
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """Resources available to a process on this machine.

    Attributes:
        system: operating system and processor.
        cores: usable CPU cores; ``cpu_share`` is the CPU quota of a container, in cores.
        threads: default threads of torch.
        memory, memory_free: bytes, within the limit of a container.
        bf16: whether the CPU has bfloat16 instructions; without them bfloat16 is slower than float32.
        accelerators: empty if there is none.
        disk_free: free bytes at ``disk``.
    """

    system: str
    cores: int
    cpu_share: float
    threads: int
    memory: int
    memory_free: int
    bf16: bool
    accelerators: tuple[Accelerator, ...]
    disk: str
    disk_free: int


def this_machine(path: str | Path = ".") -> Machine:
    """Return the resources of this machine; the disk is that of ``path``."""
    import torch

    cores = usable_cores()
    memory, free = memory_and_free()
    folder = Path(path).resolve()
    while not folder.exists():
        folder = folder.parent
    return Machine(
        system=f"{platform.system()} {platform.machine()}, {processor_name()}",
        cores=cores,
        cpu_share=min(float(cores), cpu_share(_CGROUP)),
        threads=torch.get_num_threads(),
        memory=memory,
        memory_free=free,
        bf16=has_bf16("cpu"),
        accelerators=tuple(_accelerators()),
        disk=str(folder),
        disk_free=shutil.disk_usage(folder).free,
    )


def processor_name() -> str:
    """Return the CPU name, such as "AMD EPYC 7B13", or the architecture if it is unknown."""
    return _processor().get("model name") or platform.processor() or platform.machine()


def has_bf16(device: "torch.device | str") -> bool:
    """Return whether a device computes bfloat16 in hardware; emulated it is many times slower than float32.

    A CPU needs AVX-512 BF16, AMX or Arm's bf16. A CPU whose flags are unknown counts as without.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    processor = _processor()
    flags = processor.get("flags", processor.get("Features", "")).split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


@cache
def peak_flops(precision: str) -> float:
    """Return the peak floating-point operations per second of one device: the denominator of MFU.

    Args:
        precision: "bf16", or "no" for float32.

    Returns:
        The data sheet figure for bfloat16 on a known GPU; otherwise the measured rate of a large matrix product with
        the current threads. A multiply-add counts as two.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name()
        for part, tflops in _BF16_TFLOPS.items():
            if part in name:
                return tflops * 1e12
    return _measured(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def _measured(device: str, dtype: "torch.dtype", rounds: int = 3) -> float:
    import torch

    size = _MEASURED_SIZE[device]
    # Random values: a matrix of ones takes less power, so a GPU runs it at a clock that no training reaches.
    # Its own generator: the random numbers of a training must not depend on when its peak is measured.
    matrix = torch.randn(size, size, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(0))
    best = 0.0
    for _ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _processor() -> dict[str, str]:
    """Return the fields of a core in /proc/cpuinfo; empty on other systems."""
    pairs = (line.split(":", 1) for line in _lines(Path("/proc/cpuinfo")) if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_share(cgroup: Path) -> float:
    """Return the CPU quota of a container in cores, infinity without a limit (cgroup 2, cpu.max)."""
    words = " ".join(_lines(cgroup / "cpu.max")).split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else float("inf")


def memory_and_free(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> tuple[int, int]:
    """Return total and free memory in bytes, within the limit of a container (cgroup 2, memory.max)."""
    rows = dict(line.split(":", 1) for line in _lines(meminfo) if ":" in line)
    total, free = (int(rows.get(name, "0 kB").split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    bound, used = (" ".join(_lines(cgroup / name)) for name in ("memory.max", "memory.current"))
    if bound.isdigit() and int(bound) < total:
        total = int(bound)
        free = min(free, total - int(used)) if used.isdigit() else min(free, total)
    return total, max(free, 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _accelerators() -> list[Accelerator]:
    import torch

    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        device = f"cuda:{number}"
        found.append(Accelerator(device, properties.name, properties.total_memory, has_bf16(device)))
    return found
