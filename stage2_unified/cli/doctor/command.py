"""``medunifier doctor``: look at the machine and say it in words; a JSON file for a report of trouble."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from medunifier.shared.artifacts import write_json
from medunifier.shared.config import CONFIGS, parse_config
from medunifier.shared.training.hardware import GIB, Machine, this_machine

if TYPE_CHECKING:
    from medunifier.stage2_unified.cli.doctor.requirements import Need
    from medunifier.stage2_unified.cli.doctor.sizes import Size


@dataclass(frozen=True)
class DoctorConfig:
    """Say what this machine can do, what is missing and how it is got, and which sizes fit."""

    place: str = "."
    """Where runs will be written: whose disk is looked at."""
    out: str = ""
    """File for the same as JSON; empty = print it alone."""


def main(argv: Sequence[str] | None = None) -> None:
    """Look, and print."""
    config = parse_config(DoctorConfig, argv, prog="medunifier doctor")
    # Imported here: --help does not wait for torch and transformers.
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
    share = "" if machine.cpu_share >= machine.cores else f", of which the container grants {machine.cpu_share:.3g}"
    lines = [
        f"machine      {machine.system}",
        f"python       {platform.python_version()}",
        f"cores        {machine.cores}{share}; torch takes {machine.threads} threads",
        f"memory       {machine.memory / GIB:.1f} GiB, {machine.memory_free / GIB:.1f} GiB free",
        f"bf16 on CPU  {'yes' if machine.bf16 else 'no instructions for it: float32 is faster'}",
        f"disk         {machine.disk_free / GIB:.1f} GiB free at {machine.disk}",
    ]
    for one in machine.accelerators:
        bf16 = "bf16" if one.bf16 else "no bf16: set loop.mixed_precision to fp16"
        lines.append(f"{one.device:12} {one.name}, {one.memory / GIB:.1f} GiB, {bf16}")
    if not machine.accelerators:
        lines.append("accelerator  none: the demo and a trained model run on the CPU; a training of cxr_* does not")
    return lines


def _need_line(need: "Need") -> str:
    purpose = f"   {need.purpose}" if need.purpose else ""
    state = need.found if need.found else f"missing: {need.remedy}"
    return f"  {need.name:28} {state}{purpose}"


def _size_lines(machine: Machine, sizes: list["Size"]) -> list[str]:
    best = max(machine.accelerators, key=lambda one: one.memory, default=None)
    place, memory = (best.device, best.memory) if best else ("this machine's memory", machine.memory_free)
    lines = [
        f"sizes that fit {place} ({memory / GIB:.1f} GiB); counted on the models themselves, so leave a fifth for",
        "the allocator, the perceptual net and the system",
        f"  {'preset':24} {'parameters':>12} {'to use':>10} {'to train':>10} {'a study':>10}   training",
    ]
    for size in sizes:
        fits = size.largest_batch(memory)
        if fits >= size.batch:
            words = f"fits with its batch of {size.batch}"
        elif fits:
            words = f"fits with a batch of {fits}, the preset has {size.batch}: raise loop.accumulation"
        else:
            words = "does not fit"
        lines.append(
            f"  {size.name:24} {size.parameters / 1e6:>10.1f} M {_gib(size.use):>10} {_gib(size.state):>10} "
            f"{_gib(size.sample):>10}   {words}"
        )
    return lines


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
