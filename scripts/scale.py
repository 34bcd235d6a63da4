"""Write the GPU hours of docs/scale.md, and the cost in the heads of configs/, from the results of ``bench gpu``.

    python scripts/scale.py [--results docs/results/gpu.json]

Each figure states its date, and whether it was measured uncompiled. Presets that the benchmark does not run are
estimated by the FLOP of a training step.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medunifier.shared.artifacts import atomic_file, read_json
from medunifier.shared.command import run_command
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.training.hardware import GIB
from medunifier.shared.training.memory import Size
from medunifier.stage1_tokenizer.config import DiscriminatorConfig, ModelConfig, model_config
from medunifier.stage1_tokenizer.model.discriminator import PatchDiscriminator
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage2_unified.cli.doctor.sizes import preset_sizes

ROOT = Path(__file__).resolve().parents[1]
IMAGES, STUDIES = 377_110, 227_835
"""MIMIC-CXR."""
STAGE1 = ("cxr_f16", "cxr_f8", "cxr_f16_512", "taming_f16_1024", "taming_f16_16384", "taming_f8_gumbel")
ROWS = ("stage1", "stage1_taming", "encode", "tokenize", "stage2", "large")
"""Rows of the results that are needed."""

BEGIN, END = "<!-- hours: written by scripts/scale.py -->", "<!-- end of hours -->"
_COST = re.compile(r"^# One \w+: .* h at .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Config:
    """Write the GPU hours of docs/scale.md and of the presets' heads."""

    results: str = "docs/results/gpu.json"
    """Results of `medunifier bench gpu`, with all rows of this repository's own."""
    root: str = str(ROOT)
    """The repository."""


@dataclass(frozen=True)
class Cost:
    """What a preset costs on one GPU.

    Attributes:
        preset: ``stage1/cxr_f16``.
        work: steps and batch, or the images.
        passes: over MIMIC-CXR.
        rate, unit: samples per second.
        basis: whether the rate is measured, and when, or estimated.
        hours: of the whole work.
        memory: GiB, with its basis; empty if unknown.
    """

    preset: str
    work: str
    passes: float
    rate: float
    unit: str
    basis: str
    hours: float
    memory: str = ""


class Rates:
    """Rows of the results by name.

    Raises:
        UserError: if they are a rehearsal, or lack one of :data:`ROWS`.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        self._rows = {row["row"]: row for row in results["rows"] if row["ours"] is not None}
        if results["rehearsal"] or (missing := [name for name in ROWS if name not in self._rows]):
            reason = "they are a rehearsal" if results["rehearsal"] else f"they lack {', '.join(missing)}"
            raise UserError(f"the results give no GPU hours, since {reason}: run `medunifier bench gpu` on a GPU")
        self.card = results["machine"]["gpu"].removeprefix("NVIDIA ").split()[0]

    def value(self, name: str, detail: str = "") -> float:
        """Return a row's value or one of its details."""
        row = self._rows[name]
        return float(row["details"][detail] if detail else row["ours"])

    def date(self, name: str) -> str:
        """Return the date of a row, and whether it ran uncompiled: ``2026-11-27, uncompiled``."""
        row = self._rows[name]
        return str(row["date"]) + (", uncompiled" if row["compiled"] is False else "")


def costs(rates: Rates, configs: Path) -> list[Cost]:
    """Return the cost of every preset for a GPU, in the order of the pipeline."""
    table = []
    presets = {name: _preset(configs, "stage1", name) for name in STAGE1}
    step = {name: step_flop(values) for name, values in presets.items()}
    for name, values in presets.items():
        source = "taming_f16_1024" if name.startswith("taming") else "cxr_f16"
        row = "stage1_taming" if name.startswith("taming") else "stage1"
        factor = step[name] / step[source]
        table.append(
            _training(
                f"stage1/{name}", values, rates.value(row) / factor, "images/s", IMAGES,
                _basis(rates, row, "FLOP" if name != source else ""), _memory(rates, f"stage1/{name}"),
            )
        )  # fmt: skip
    encoder = {name: encoder_flop(presets[name]) for name in ("cxr_f16", "cxr_f8", "cxr_f16_512")}
    for name, flop in encoder.items():
        factor = flop / encoder["cxr_f16"]
        encode, shards = rates.value("encode") / factor, rates.value("tokenize")
        if encode < shards:
            basis = _basis(rates, "encode", "FLOP" if name != "cxr_f16" else "")
        else:
            basis = _basis(rates, "tokenize", "") + (", bound by reading PNG" if name != "cxr_f16" else "")
        rate = min(encode, shards)
        table.append(
            Cost(f"tokenize, {name}", f"{IMAGES:,} images", 1.0, rate, "images/s", basis, IMAGES / rate / 3600)
        )
    base = _preset(configs, "stage2", "base_256")
    for name, row in (("stage2/base_256", "stage2"), ("base_256 with 24 layers of 1,024", "large")):
        rate, memory = rates.value(row, "studies_per_s"), _measured_memory(rates, row)
        table.append(_training(name, base, rate, "studies/s", STUDIES, _basis(rates, row, ""), memory))
    return table


def _training(
    name: str, values: Mapping[str, Any], rate: float, unit: str, samples: int, basis: str, memory: str
) -> Cost:
    steps, batch = values["loop"]["steps"], values["loop"]["batch_size"]
    total = steps * batch
    return Cost(name, f"{steps:,} steps of {batch}", total / samples, rate, unit, basis, total / rate / 3600, memory)


def _basis(rates: Rates, row: str, estimated_by: str) -> str:
    return f"estimated by {estimated_by} from {rates.date(row)}" if estimated_by else f"measured {rates.date(row)}"


def _memory(rates: Rates, preset: str) -> str:
    """Return the GiB of a preset of stage 1: measured, or the estimate of ``medunifier doctor``."""
    if preset == "stage1/cxr_f16":
        return f"{_measured_memory(rates, 'stage1')} at batch {rates.value('stage1', 'batch'):.0f}"
    size = next(size for size in _sizes() if size.name == preset)
    return f"{(size.state + size.sample * size.batch) / GIB:.0f}, estimated without VGG"


def _measured_memory(rates: Rates, row: str) -> str:
    return f"{rates.value(row, 'peak_memory_gib'):.0f}, measured {rates.date(row)}"


@cache
def _sizes() -> list[Size]:
    return preset_sizes(ROOT / "configs")


def _preset(configs: Path, stage: str, name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((configs / stage / f"{name}.yaml").read_text(encoding="utf-8")))


def step_flop(values: Mapping[str, Any]) -> float:
    """Return the FLOP of a training step for one image, with VGG and discriminator.

    Tokenizer: forward and backward pass, three times the former. VGG: both images forward, the gradient of one of
    them. Discriminator: real and generated image three times each, and the generated one forward and backward without
    weight gradients.
    """
    model = model_config(values["model"])
    loss = values["loss"]
    discriminator = DiscriminatorConfig(**loss["discriminator"])
    size = model.resolution
    with torch.device("meta"):
        vgg = _vgg_layers()
        patch = PatchDiscriminator(model.out_ch, discriminator.width, discriminator.layers, discriminator.norm)
        tokenizer = VQGAN(model).flop_an_image()
        return 3 * tokenizer + 3 * _flop(vgg, 3, size) + 8 * _flop(patch, model.out_ch, size)


def encoder_flop(values: Mapping[str, Any]) -> float:
    """Return the FLOP of encoding one image."""
    model: ModelConfig = model_config(values["model"])
    with torch.device("meta"):
        tokenizer = VQGAN(model)
        stride = tokenizer.front_end.stride
        channels = model.in_channels * tokenizer.front_end.channel_multiplier
        return _flop(tokenizer.encoder, channels, model.resolution // stride)


def _vgg_layers() -> nn.Module:
    from torchvision.models import vgg16

    features: nn.Module = vgg16(weights=None).features
    return features


def _flop(module: nn.Module, channels: int, size: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.empty(1, channels, size, size, device="meta"))
    return float(counter.get_total_flops())


def hours_table(table: list[Cost]) -> str:
    """Return the costs as Markdown."""
    lines = [
        "| | work | passes over MIMIC-CXR | rate | basis of the rate | GiB | hours |",
        "|---|---|---|---|---|---|---|",
    ]
    for cost in table:
        rate = f"{cost.rate:,.0f} {cost.unit}"
        lines.append(
            f"| {cost.preset} | {cost.work} | {cost.passes:.1f} | {rate} | {cost.basis} | {cost.memory or '–'} | "
            f"{_hours(cost.hours)} |"
        )
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def with_cost(head: str, cost: Cost, card: str) -> str:
    """Return a preset's text with the line of its cost, before its line `Hardware:` if it had none."""
    amount, _, basis = cost.memory.partition(", ")
    rate = f"{_hours(cost.hours)} h at {cost.rate:,.0f} {cost.unit} ({cost.basis})"
    line = f"# One {card}: {rate}, {amount} GiB ({basis}); docs/scale.md.\n"
    head = _COST.sub("", head)
    return head.replace("# Hardware:", line + "# Hardware:", 1)


def write(config: Config) -> None:
    """Write docs/scale.md and the presets' heads."""
    root = Path(config.root)
    path = Path(config.results)
    rates = Rates(read_json(path, "results of `bench gpu`"))
    table = costs(rates, root / "configs")
    page = root / "docs" / "scale.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    _write(page, f"{before}{BEGIN}\n{hours_table(table)}\n{END}{after}")
    for cost in table:
        preset = root / "configs" / f"{cost.preset}.yaml"
        if preset.is_file():
            _write(preset, with_cost(preset.read_text(encoding="utf-8"), cost, rates.card))


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def main(argv: list[str]) -> None:
    """Parse the options and write."""
    write(parse_config(Config, argv, prog="scripts/scale.py"))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))  # type: ignore[arg-type]
