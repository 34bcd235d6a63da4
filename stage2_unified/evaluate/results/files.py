"""The files of a result: JSON with every circumstance, scores by sample, written texts, pictures and a page."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunifier.shared.artifacts import atomic_file, remove_partial, write_json
from medunifier.shared.metrics.samples import save_samples
from medunifier.stage2_unified.evaluate.results.pages import write_page
from medunifier.stage2_unified.evaluate.results.pictures import pictures_folder, save_pictures
from medunifier.stage2_unified.evaluate.results.result import TaskResult, defined, interval, versions


def write_result(
    out: str | Path,
    *,
    task: str,
    results: Mapping[str, TaskResult],
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    command: str,
    seed: int,
    bootstrap: int,
    skipped: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    notes: list[str] | None = None,
) -> dict[str, Any]:
    """Write everything of a judgement; the JSON comes last, so that where it is, all else is.

    Args:
        out: NAME.json. Beside it: NAME.html, NAME-pictures, NAME-samples.npz and, where reports were judged,
            NAME-reports.csv, which ``--predictions`` reads.
        task: as it was asked for.
        results: by task.
        data: what was judged on.
        model: fingerprints, or what stands for them.
        command: the line that does it again.
        seed, bootstrap: of the intervals.
        skipped: tasks that the data do not allow, and why.
        seconds: by task.
        notes: what a reader must know before any figure.

    Returns:
        The JSON's content.
    """
    out = Path(out)
    remove_remnants(out)
    metrics, undefined = defined({key: value for result in results.values() for key, value in result.metrics.items()})
    details: dict[str, Any] = {}
    for name, result in results.items():
        found: dict[str, Any] = dict(result.details.get("intervals", {}))
        for samples in result.samples.values():
            found |= {figure: interval(bounds) for figure, bounds in samples.intervals(bootstrap, seed).items()}
        details[name] = {**result.details, "intervals": found}
    groups = {name: samples for result in results.values() for name, samples in result.samples.items()}
    texts = {name: text for result in results.values() for name, text in result.texts.items()}
    content = {
        "task": task,
        "notes": notes or [],
        "metrics": metrics,
        "undefined": undefined,
        "skipped": dict(skipped or {}),
        "data": dict(data),
        "model": dict(model),
        "protocol": {name: result.protocol for name, result in results.items()},
        "versions": versions(),
        "command": command,
        "seed": seed,
        "bootstrap": {"draws": bootstrap, "by": "patient", "interval": "95 % percentile"},
        "seconds": dict(seconds or {}),
        "details": details,
    }
    save_pictures(
        pictures_folder(out), {name: image for result in results.values() for name, image in result.pictures.items()}
    )
    if groups:
        content["samples"] = save_samples(out.with_name(f"{out.stem}-samples.npz"), groups)
    if texts:
        content["reports"] = out.with_name(f"{out.stem}-reports.csv").name
        save_reports(out.with_name(f"{out.stem}-reports.csv"), texts)
    write_page(content, out)
    write_json(out, content)
    return content


def remove_remnants(out: Path) -> None:
    """Remove what killed processes left half written of this result; pictures and reports are patients' data."""
    names = (out.name, f"{out.stem}.html", f"{out.stem}-samples.npz", f"{out.stem}-reports.csv")
    remove_partial(out.parent, *names, pictures_folder(out).name)


def save_reports(path: Path, texts: Mapping[str, str]) -> None:
    """Written reports as ``study_id,report``, the form that ``--predictions`` reads."""
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["study_id", "report"])
        writer.writerows(texts.items())


def print_figures(content: Mapping[str, Any], out: str | Path) -> None:
    """Figures beside their baselines, then where the files are."""
    for note in content["notes"]:
        print(f"note: {note}")
    for name, value in content["metrics"].items():
        if not name.endswith(".baseline"):
            baseline = content["metrics"].get(f"{name}.baseline")
            print(f"{name:44} {value:8.4f}" + ("" if baseline is None else f"   baseline {baseline:.4f}"))
    print(f"{out} and {Path(out).with_suffix('.html').name} written")
