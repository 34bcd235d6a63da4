"""``medunifier doctor``: print hardware, packages and preset sizes; optionally as JSON for a bug report."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from medunifier.shared.artifacts import write_json
from medunifier.shared.config import CONFIGS, parse_config
from medunifier.shared.training.hardware import GIB, Machine, this_machine

if TYPE_CHECKING:
    from medunifier.shared.training.memory import Size
    from medunifier.stage2_unified.cli.doctor.requirements import Need


@dataclass(frozen=True)
class DoctorConfig:
    """Check hardware, packages and weights, and list the presets that fit into memory."""

    place: str = "."
    """Folder for runs, whose free disk space is checked."""
    out: str = ""
    """JSON file for the results; empty = print only."""


def main(argv: Sequence[str] | None = None) -> None:
    """Collect the information and print it."""
    config = parse_config(DoctorConfig, argv, prog="medunifier doctor")
    # Imported here so that --help does not wait for torch and transformers.
    from medunifier.stage2_unified.cli.doctor.requirements import decoders, optional_packages, packages, weights
    from medunifier.stage2_unified.cli.doctor.sizes import preset_sizes

    machine = this_machine(config.place)
    needs = {
        "packages": packages(), "optional packages": optional_packages(), "DICOM decoders": decoders(),
        "weights": weights(CONFIGS),
    }  # fmt: skip
    sizes = preset_sizes(CONFIGS)
    lines = [*_machine_lines(machine)]
    for title, rows in needs.items():
        lines += ["", title, *(_need_line(row) for row in rows)]
    lines += ["", *_size_lines(machine, sizes)]
    print("\n".join(lines))
    if config.out:
        named = {title: [asdict(need) for need in found] for title, found in needs.items()}
        write_json(config.out, {"machine": asdict(machine), **named, "sizes": [asdict(size) for size in sizes]})


def _machine_lines(machine: Machine) -> list[str]:
    quota = "" if machine.cpu_share >= machine.cores else f", limited to {machine.cpu_share:.3g} by the container"
    lines = [
        f"machine      {machine.system}",
        f"python       {platform.python_version()}",
        f"cores        {machine.cores}{quota}; torch uses {machine.threads} threads",
        f"memory       {machine.memory / GIB:.1f} GiB, {machine.memory_free / GIB:.1f} GiB free",
        f"bf16 on CPU  {'yes' if machine.bf16 else 'no hardware support: float32 is faster'}",
        f"disk         {machine.disk_free / GIB:.1f} GiB free at {machine.disk}",
    ]
    for device in machine.accelerators:
        bf16 = "bf16" if device.bf16 else "no bf16: set loop.mixed_precision to fp16"
        lines.append(f"{device.device:12} {device.name}, {device.memory / GIB:.1f} GiB, {bf16}")
    if not machine.accelerators:
        lines.append("accelerator  none: the demo and inference run on the CPU, training cxr_* presets needs a GPU")
    return lines


def _need_line(need: "Need") -> str:
    purpose = f"   {need.purpose}" if need.purpose else ""
    state = need.found if need.found else f"missing: {need.remedy}"
    return f"  {need.name:28} {state}{purpose}"


def _size_lines(machine: Machine, sizes: list["Size"]) -> list[str]:
    best = max(machine.accelerators, key=lambda device: device.memory, default=None)
    place, memory = (best.device, best.memory) if best else ("this machine's memory", machine.memory_free)
    lines = [
        f"presets that fit into {place} ({memory / GIB:.1f} GiB), computed from the models; reserve a fifth for",
        "the allocator, the perceptual network and the system",
        f"  {'preset':24} {'parameters':>12} {'inference':>10} {'training':>10} {'per study':>10}   batch",
    ]
    for size in sizes:
        fits = size.largest_batch(memory)
        if fits >= size.batch:
            verdict = f"fits with its batch size of {size.batch}"
        elif fits:
            verdict = f"fits with a batch size of {fits} instead of {size.batch}: raise loop.accumulation"
        else:
            verdict = "does not fit"
        lines.append(
            f"  {size.name:24} {size.parameters / 1e6:>10.1f} M {_gib(size.use):>10} {_gib(size.state):>10} "
            f"{_gib(size.sample):>10}   {verdict}"
        )
    return lines


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
