"""Write the files of a result: JSON, scores by sample, generated reports, images and the page."""

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
    """Write all files of a result. The JSON is written last, so its presence means that the result is complete.

    Args:
        out: NAME.json. Beside it: NAME.html, NAME-pictures, NAME-samples.npz and, with generated reports,
            NAME-reports.csv, which ``--predictions`` reads.
        task: as requested.
        results: by task.
        data: description of the evaluated data.
        model: fingerprints, or checksums in their place.
        command: command line that reproduces the result.
        seed, bootstrap: seed and number of resamples of the intervals.
        skipped: tasks that the data do not allow, and the reason.
        seconds: wall time by task.
        notes: warnings shown above all metrics.

    Returns:
        Content of the JSON.
    """
    out = Path(out)
    remove_partial_files(out)
    metrics, undefined = defined({key: value for result in results.values() for key, value in result.metrics.items()})
    details: dict[str, Any] = {}
    for name, result in results.items():
        intervals: dict[str, Any] = dict(result.details.get("intervals", {}))
        for samples in result.samples.values():
            intervals |= {metric: interval(bounds) for metric, bounds in samples.intervals(bootstrap, seed).items()}
        details[name] = {**result.details, "intervals": intervals}
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
        "bootstrap": {"resamples": bootstrap, "by": "patient", "interval": "95 % percentile"},
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


def remove_partial_files(out: Path) -> None:
    """Remove partial files of this result left by killed processes; images and reports are patient data."""
    names = (out.name, f"{out.stem}.html", f"{out.stem}-samples.npz", f"{out.stem}-reports.csv")
    remove_partial(out.parent, *names, pictures_folder(out).name)


def save_reports(path: Path, texts: Mapping[str, str]) -> None:
    """Write generated reports as ``study_id,report``, the format that ``--predictions`` reads."""
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["study_id", "report"])
        writer.writerows(texts.items())


def print_metrics(content: Mapping[str, Any], out: str | Path) -> None:
    """Print the notes, the metrics with their baselines, and the paths of the files."""
    for note in content["notes"]:
        print(f"note: {note}")
    for name, value in content["metrics"].items():
        if not name.endswith(".baseline"):
            baseline = content["metrics"].get(f"{name}.baseline")
            print(f"{name:44} {value:8.4f}" + ("" if baseline is None else f"   baseline {baseline:.4f}"))
    print(f"{out} and {Path(out).with_suffix('.html').name} written")
