"""Rows of the GPU benchmark: what each measures, its target and its peer; the results file and its printed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medunifier.gpu_bench.sizes import IDLE, Figures


@dataclass(frozen=True)
class Row:
    """What a row measures, in which unit; the target (``lower``: smaller is better); the row that is its peer."""

    what: str
    unit: str
    target: float | None = None
    peer: str = ""
    lower: bool = False


@dataclass(frozen=True)
class Group:
    """A measurement, ``module:function``, the GiB that it may need, and the names of its rows."""

    function: str
    memory: float
    rows: tuple[str, ...]


GROUPS = {
    "stage1": Group("tokenizer:train", 24, ("stage1",)),
    "stage2": Group("unified:train", 36, ("stage2", "stage2_memory", "muon")),
    "tokenize": Group("tokenizer:tokenize", 12, ("encode", "tokenize", "decode")),
    "images": Group("generation:images", 5, ("images_1", "images_64")),
    "reports": Group("generation:reports", 5, ("reports_1", "reports_64")),
    "large": Group("unified:train_large", 56, ("large",)),
    "stage2_stock": Group("unified:train_stock", 24, ("stage2_stock", "stage2_of_stock")),
    "images_stock": Group("generation:images_stock", 5, ("images_1_stock", "images_64_stock")),
    "stage1_taming": Group("tokenizer:train_taming", 18, ("stage1_taming",)),
}
"""In the order in which they are started: our own before the peers, and those that compile longest first."""

ROWS = {
    "stage1": Row("cxr_f16, training step, VGG and discriminator on", "images/s", 750, "stage1_taming"),
    "encode": Row("cxr_f16, encode alone, bf16", "images/s", 12_000),
    "tokenize": Row("medunifier tokenize, cxr_f16, from shards on disk", "images/s", 3_000),
    "decode": Row("cxr_f16, decode codes to images, bf16", "images/s", 5_000),
    "stage2": Row("base_256, whole training step", "tokens/s", 420_000, "stage2_stock"),
    "stage2_of_stock": Row("base_256, whole step relative to the compiled stock decoder", "ratio", 0.75),
    "stage2_memory": Row("base_256, peak memory of the step", "GiB", 22, lower=True),
    "muon": Row("Muon's share of the step of base_256", "ratio", 0.05, lower=True),
    "large": Row("24 layers of 1,024, MFU of the whole step", "ratio", 0.40),
    "images_1": Row("images of 256 codes with guidance, batch 1", "images/s", 4, "images_1_stock"),
    "images_64": Row("images of 256 codes with guidance, batch 64", "images/s", 180, "images_64_stock"),
    "reports_1": Row("reports of 100 tokens, batch 1", "reports/s", 8),
    "reports_64": Row("reports of 100 tokens, batch 64", "reports/s", 350),
    "stage1_taming": Row("peer: training step with taming_f16_1024's layers, uncompiled", "images/s"),
    "stage2_stock": Row("peer: Qwen3ForCausalLM, layers compiled, forward and backward", "tokens/s"),
    "images_1_stock": Row("peer: generate(), guidance, static cache, uncompiled, batch 1", "images/s"),
    "images_64_stock": Row("peer: generate(), guidance, static cache, uncompiled, batch 64", "images/s"),
}
UNCOMPILED = {"stage2_of_stock", "stage1_taming", "images_1_stock", "images_64_stock"}
"""Rows that are valid on a GPU although no graph was compiled in their warm-up."""


def table(figures: Mapping[str, Figures], errors: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the rows that have figures or an error, in the order of :data:`ROWS`.

    Args:
        figures: by row.
        errors: reason by row.

    Returns:
        JSON objects by name, with ``row, what, unit, ours, peer, target, ratio, compiled, error, details``. ``ratio``
        is ``ours / target``, or ``target / ours`` where less is better: at least 1 meets the target. ``compiled`` is
        None where it is not known. ``ours`` and ``ratio`` are None with an error; ``peer`` is set by :func:`relate`.
    """
    rows = {}
    for name, row in ROWS.items():
        if name in figures:
            ours, details = figures[name].value, figures[name].details
            ratio = (row.target / ours if row.lower else ours / row.target) if ours and row.target else None
            compiled = details["graphs"] > 0 if "graphs" in details else None
            result = {"ours": ours, "ratio": ratio, "compiled": compiled, "error": None, "details": details}
        elif name in errors:
            result = {"ours": None, "ratio": None, "compiled": None, "error": errors[name], "details": {}}
        else:
            continue
        rows[name] = {"row": name, "what": row.what, "unit": row.unit, "target": row.target, "peer": None, **result}
    return rows


def relate(rows: dict[str, dict[str, Any]]) -> None:
    """Set the peers of rows, which may be of several runs, and add the ratio to the stock decoder."""
    if all(rows.get(name, {}).get("ours") for name in ("stage2", "stage2_stock")):
        ratio = Figures(rows["stage2"]["ours"] / rows["stage2_stock"]["ours"])
        newest = max((rows["stage2"], rows["stage2_stock"]), key=lambda row: row["date"])
        rows["stage2_of_stock"] = newest | table({"stage2_of_stock": ratio}, {})["stage2_of_stock"]
    for name, row in rows.items():
        row["peer"] = rows.get(ROWS[name].peer, {}).get("ours")


def printed(row: Mapping[str, Any]) -> str:
    """Return a row as a line of text."""
    if row["error"]:
        return f"{row['what']}: not measured: {row['error']}"
    line, details = f"{row['what']}: {row['ours']:,.4g} {row['unit']}", row["details"]
    if row["peer"]:
        line += f", peer {row['peer']:,.4g}"
    if row["ratio"]:
        line += f" (target {row['target']:,g}, ratio {row['ratio']:.2f}: {'met' if row['ratio'] >= 1 else 'missed'})"
    shown = {"mfu": ", MFU {:.3f}", "peak_memory_gib": ", {:.1f} GiB", "compile_s": ", {:.1f} s to compile"}
    line += "".join(text.format(details[name]) for name, text in shown.items() if name in details)
    if "profile" in details:
        line += f", no kernel {details['profile']['idle_share']:.1%} of the time"
    if details.get("gpu_idle", 1.0) < IDLE:
        line += f"; the GPU was not idle: a matrix product ran at {details['gpu_idle']:.0%} of its rate"
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
