"""Rows of the GPU benchmark: what each measures, its target and its peer; the results file and its printed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medunifier.gpu_bench.sizes import Figures


@dataclass(frozen=True)
class RowSpec:
    """A row of the table.

    Attributes:
        name: key of the row's figures.
        what, unit: what ``ours`` is.
        target: required value in that unit, None without one.
        lower: smaller is better.
        peer: row whose value is the peer's; ``ours`` is then compared with both.
    """

    name: str
    what: str
    unit: str
    target: float | None = None
    lower: bool = False
    peer: str = ""


@dataclass(frozen=True)
class Group:
    """A measurement that gives the figures of several rows.

    Attributes:
        function: ``module:function`` of the measurement.
        memory: GiB that it may need; as many run side by side as fit the GPU.
        rows: names of its rows.
    """

    function: str
    memory: float
    rows: tuple[str, ...]


GROUPS = {
    "stage1": Group("tokenizer:train", 26, ("stage1",)),
    "tokenize": Group("tokenizer:tokenize", 10, ("encode", "tokenize", "decode")),
    "stage2": Group("unified:train", 26, ("stage2", "stage2_memory", "muon")),
    "images": Group("generation:images", 6, ("images_1", "images_64")),
    "reports": Group("generation:reports", 6, ("reports_1", "reports_64")),
    "large": Group("unified:train_large", 46, ("large",)),
    "stage2_stock": Group("unified:train_stock", 20, ("stage2_stock",)),
    "images_stock": Group("generation:images_stock", 6, ("images_1_stock", "images_64_stock")),
    "stage1_taming": Group("tokenizer:train_taming", 20, ("stage1_taming",)),
}
"""In the order of their measurement: our own rows before the peers'."""

ROWS = (
    RowSpec("stage1", "cxr_f16, training step, VGG and discriminator on", "images/s", 750, peer="stage1_taming"),
    RowSpec("encode", "cxr_f16, encode alone, bf16", "images/s", 12_000),
    RowSpec("tokenize", "medunifier tokenize, cxr_f16, from shards on disk", "images/s", 3_000),
    RowSpec("decode", "cxr_f16, decode codes to images", "images/s", 5_000),
    RowSpec("stage2", "base_256, whole training step", "tokens/s", 420_000, peer="stage2_stock"),
    RowSpec("stage2_of_stock", "base_256, whole step relative to the compiled stock decoder", "ratio", 0.75),
    RowSpec("stage2_memory", "base_256, peak memory of the step", "GiB", 22, lower=True),
    RowSpec("muon", "Muon's share of the step of base_256", "ratio", 0.05, lower=True),
    RowSpec("large", "24 layers of 1,024, MFU of the whole step", "ratio", 0.40),
    RowSpec("images_1", "images of 256 codes with guidance, batch 1", "images/s", 4, peer="images_1_stock"),
    RowSpec("images_64", "images of 256 codes with guidance, batch 64", "images/s", 180, peer="images_64_stock"),
    RowSpec("reports_1", "reports of 100 tokens, batch 1", "reports/s", 8),
    RowSpec("reports_64", "reports of 100 tokens, batch 64", "reports/s", 350),
    RowSpec("stage1_taming", "peer: training step with taming_f16_1024's layers", "images/s"),
    RowSpec("stage2_stock", "peer: Qwen3ForCausalLM compiled, forward and backward", "tokens/s"),
    RowSpec("images_1_stock", "peer: generate() with guidance and a static cache, batch 1", "images/s"),
    RowSpec("images_64_stock", "peer: generate() with guidance and a static cache, batch 64", "images/s"),
)  # fmt: skip


def derive(figures: dict[str, Figures]) -> None:
    """Add the row that relates two measurements, once both are there."""
    if {"stage2", "stage2_stock"} <= figures.keys():
        ours, stock = figures["stage2"].value, figures["stage2_stock"].value
        figures["stage2_of_stock"] = Figures(ours / stock)


def table(figures: Mapping[str, Figures], errors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the rows that have figures or an error, in the order of :data:`ROWS`.

    Args:
        figures: by row.
        errors: reason by group.

    Returns:
        JSON objects with ``row, what, unit, ours, peer, target, ratio, error, details``. ``ratio`` is ``ours /
        target``, or ``target / ours`` where less is better: at least 1 meets the target. ``ours`` and ``ratio`` are
        None with an error.
    """
    rows = []
    for spec in ROWS:
        found = figures.get(spec.name)
        error = next(
            (errors[name] for name, group in GROUPS.items() if spec.name in group.rows and name in errors), None
        )
        if found is None and error is None:
            continue
        ours = None if found is None else found.value
        ratio = None
        if ours and spec.target is not None:
            ratio = spec.target / ours if spec.lower else ours / spec.target
        rows.append(
            {
                "row": spec.name,
                "what": spec.what,
                "unit": spec.unit,
                "ours": ours,
                "peer": figures[spec.peer].value if spec.peer in figures else None,
                "target": spec.target,
                "ratio": ratio,
                "error": None if found is not None else error,
                "details": {} if found is None else dict(found.details),
            }
        )
    return rows


def printed(row: Mapping[str, Any]) -> str:
    """Return a row as a line of text."""
    if row["error"]:
        return f"{row['what']}: not measured: {row['error']}"
    line = f"{row['what']}: {row['ours']:,.4g} {row['unit']}"
    if row["peer"]:
        line += f", peer {row['peer']:,.4g}"
    if row["target"] is not None:
        met = "met" if row["ratio"] and row["ratio"] >= 1 else "missed"
        line += f" (target {row['target']:,g}, ratio {row['ratio'] or 0:.2f}: {met})"
    details = row["details"]
    if "mfu" in details and row["unit"] != "ratio":
        line += f", MFU {details['mfu']:.3f}"
    if "profile" in details:
        line += f", no kernel {details['profile']['idle_share']:.1%} of the time"
    for name, label in (("peak_memory_gib", "GiB"), ("compile_s", "s to compile")):
        if name in details and row["unit"] != "GiB":
            line += f", {details[name]:.1f} {label}"
    return line


def selected(names: Sequence[str]) -> list[str]:
    """Return the groups that give the named rows or groups; all without names.

    Raises:
        ValueError: for an unknown name.
    """
    known = {row: group for group, spec in GROUPS.items() for row in spec.rows} | {name: name for name in GROUPS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown row {unknown[0]!r}; there are: {', '.join(GROUPS)}")
    wanted = {known[name] for name in names} or set(GROUPS)
    return [name for name in GROUPS if name in wanted]
