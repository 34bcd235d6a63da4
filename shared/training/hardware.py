"""Cores, memory, accelerators and disk of this machine, within the limits of a container."""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medunifier.shared.files.os_services import usable_cores

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30


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
