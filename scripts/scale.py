"""Write the GPU hours of docs/scale.md, and the cost in the heads of configs/, from the results of ``bench gpu``.

    python scripts/scale.py [--results docs/results/gpu.json]

A rate that the results lack is the one measured on 2026-11-26, before the steps were compiled. Each figure states its
date, and that it was measured uncompiled. Presets that the
benchmark does not run are estimated: stage 1 by the FLOP of a step, stage 2 by the weights of the layers.
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
from medunifier.shared.training.hardware import GIB
from medunifier.shared.training.memory import Size
from medunifier.stage1_tokenizer.config import DiscriminatorConfig, ModelConfig, model_config
from medunifier.stage1_tokenizer.model.discriminator import PatchDiscriminator
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage2_unified.cli.doctor.sizes import preset_sizes
from medunifier.stage2_unified.training.config import BackboneConfig

ROOT = Path(__file__).resolve().parents[1]
IMAGES, STUDIES = 377_110, 227_835
"""MIMIC-CXR."""
STAGE1 = ("cxr_f16", "cxr_f8", "cxr_f16_512", "taming_f16_1024", "taming_f16_16384", "taming_f8_gumbel")
LARGE = BackboneConfig(hidden_dim=1024, num_layers=24, num_heads=16, num_kv_heads=4, mlp_dim=2816)
"""The larger decoder of the benchmark; all else as in ``base_256``."""

EARLIER: dict[str, dict[str, Any]] = {
    "stage1": {"ours": 267.0, "details": {}},
    "stage1_taming": {"ours": 70.0, "details": {}},
    "encode": {"ours": 4971.0, "details": {}},
    "stage2": {"ours": 88_000.0, "details": {"studies_per_s": 98.0}},
    "stage2_memory": {"ours": 47.7, "details": {}},
}
"""Rows measured on 2026-11-26 at commit 48b694b: H100 80GB HBM3, torch 2.11, transformers 5.17, accelerate 1.15."""
EARLIER_DATE = "2026-11-26"

BEGIN, END = "<!-- hours: written by scripts/scale.py -->", "<!-- end of hours -->"
_COST = re.compile(r"^# One H100: .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Config:
    """Write the GPU hours of docs/scale.md and of the presets' heads."""

    results: str = "docs/results/gpu.json"
    """Results of `medunifier bench gpu`; without the file the earlier rates are used."""
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
    """Rows of the results by name; those that lack are the earlier ones."""

    def __init__(self, results: Mapping[str, Any] | None) -> None:
        rows = results["rows"] if results and not results["rehearsal"] else []
        self._rows = {row["row"]: row for row in rows if row["ours"] is not None}

    def value(self, name: str, detail: str = "") -> float | None:
        """Return a row's value or one of its details; None if it was never measured."""
        row = self._rows.get(name) or EARLIER.get(name)
        found = None if row is None else row["details"].get(detail) if detail else row["ours"]
        return None if found is None else float(found)

    def date(self, name: str) -> str:
        """Return the date of a row, and whether it ran uncompiled: ``2026-11-27, uncompiled``."""
        row = self._rows.get(name, {"date": EARLIER_DATE, "compiled": False})
        return str(row["date"]) + (", uncompiled" if row.get("compiled") is False else "")

    def known(self, name: str) -> float:
        """Return the value of a row of :data:`EARLIER` or newer."""
        value = self.value(name)
        assert value is not None, name  # noqa: S101 - narrows a type
        return value


def costs(rates: Rates, configs: Path) -> list[Cost]:
    """Return the cost of every preset for a GPU, in the order of the pipeline."""
    table = []
    for name in STAGE1:
        values = _preset(configs, "stage1", name)
        source = "taming_f16_1024" if name.startswith("taming") else "cxr_f16"
        row = "stage1_taming" if name.startswith("taming") else "stage1"
        factor = step_flop(values) / step_flop(_preset(configs, "stage1", source))
        table.append(
            _training(
                f"stage1/{name}", values, rates.known(row) / factor, "images/s", IMAGES,
                _basis(rates, row, "FLOP" if name != source else ""), _memory(rates, f"stage1/{name}"),
            )
        )  # fmt: skip
    for name in ("cxr_f16", "cxr_f8", "cxr_f16_512"):
        factor = encoder_flop(_preset(configs, "stage1", name)) / encoder_flop(_preset(configs, "stage1", "cxr_f16"))
        encode, shards = rates.known("encode") / factor, rates.value("tokenize")
        rate = encode if shards is None else min(encode, shards)
        row = "encode" if shards is None or encode < shards else "tokenize"
        basis = _basis(rates, row, "FLOP" if row == "encode" and name != "cxr_f16" else "")
        if shards is None:
            basis += ", encoder alone"
        table.append(
            Cost(f"tokenize, {name}", f"{IMAGES:,} images", 1.0, rate, "images/s", basis, IMAGES / rate / 3600)
        )
    base = _preset(configs, "stage2", "base_256")
    studies = rates.value("stage2", "studies_per_s")
    assert studies is not None  # noqa: S101 - narrows a type
    memory = _memory(rates, "stage2/base_256")
    table.append(
        _training("stage2/base_256", base, studies, "studies/s", STUDIES, _basis(rates, "stage2", ""), memory)
    )
    large, measured = rates.value("large", "studies_per_s"), rates.value("large", "peak_memory_gib")
    basis = _basis(rates, "large", "") if large else _basis(rates, "stage2", "weights")
    if large is None:
        large = studies * layer_weights(BackboneConfig(**base["model"])) / layer_weights(LARGE)
    memory = f"{measured:.0f}, measured {rates.date('large')}" if measured else f"above 80, measured {EARLIER_DATE}"
    table.append(_training("base_256 with 24 layers of 1,024", base, large, "studies/s", STUDIES, basis, memory))
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
    """Return the GiB of a preset: measured, or the estimate of ``medunifier doctor``."""
    if preset == "stage2/base_256":
        return f"{rates.known('stage2_memory'):.0f}, measured {rates.date('stage2_memory')}"
    peak = rates.value("stage1", "peak_memory_gib") if preset == "stage1/cxr_f16" else None
    if peak is not None:
        return f"{peak:.0f}, measured {rates.date('stage1')} at batch {rates.value('stage1', 'batch'):.0f}"
    size = next(size for size in _sizes() if size.name == preset)
    return f"{(size.state + size.sample * size.batch) / GIB:.0f}, estimated without VGG"


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


def layer_weights(backbone: BackboneConfig) -> int:
    """Return the number of weights in the matrices of the decoder's layers."""
    attention = (2 * backbone.num_heads + 2 * backbone.num_kv_heads) * backbone.head_dim
    return backbone.num_layers * backbone.hidden_dim * (attention + 3 * backbone.mlp_dim)


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


def with_cost(head: str, cost: Cost) -> str:
    """Return a preset's text with the line of its cost, before its line `Hardware:` if it had none."""
    amount, _, basis = cost.memory.partition(", ")
    rate = f"{_hours(cost.hours)} h at {cost.rate:,.0f} {cost.unit} ({cost.basis})"
    line = f"# One H100: {rate}, {amount} GiB ({basis}); docs/scale.md.\n"
    head = _COST.sub("", head)
    return head.replace("# Hardware:", line + "# Hardware:", 1)


def write(config: Config) -> None:
    """Write docs/scale.md and the presets' heads."""
    root = Path(config.root)
    path = Path(config.results)
    results = read_json(path, "results of `bench gpu`") if path.is_file() else None
    table = costs(Rates(results), root / "configs")
    page = root / "docs" / "scale.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    _write(page, f"{before}{BEGIN}\n{hours_table(table)}\n{END}{after}")
    for cost in table:
        preset = root / "configs" / f"{cost.preset}.yaml"
        if preset.is_file():
            _write(preset, with_cost(preset.read_text(encoding="utf-8"), cost))


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def main(argv: list[str]) -> None:
    """Parse the options and write."""
    write(parse_config(Config, argv, prog="scripts/scale.py"))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))  # type: ignore[arg-type]
