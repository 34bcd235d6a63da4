"""HTML page of an evaluation, rendered from the JSON and its images alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunifier.shared.report_page.page import Bar, Figure, Page
from medunifier.stage2_unified.evaluate.results.definitions import definitions_of
from medunifier.stage2_unified.evaluate.results.pictures import load_picture, pictures_folder

TITLES = {
    "tokenizer": "Tokenizer: reconstruction of radiographs",
    "retrieval": "Retrieval between radiographs and reports",
    "zero-shot": "Zero-shot classification by prompts",
    "reports": "Report generation",
    "synthesis": "Image generation from reports",
    "finetune": "Fine-tuning by percentage of labels: linear probe and all weights",
}
# Prefixes of the names of each task's metrics.
PREFIXES = {
    "tokenizer": ("tokenizer.",),
    "retrieval": ("retrieval.", "matching."),
    "zero-shot": ("zero_shot.",),
    "reports": ("reports.",),
    "synthesis": ("synthesis.",),
    "finetune": ("finetune.",),
}
BASELINE = "The tick on each bar is the baseline: the value of chance or of a trivial prediction."
# Names of image sets and columns in result files -> as the page shows them; {} is "phantom" or "radiograph".
_SETS = {
    "real": "held-out {}",
    "train": "training {}",
    "decoded": "held-out, reconstructed",
}


def write_page(result: Mapping[str, Any], out: Path) -> None:
    """Write the page beside a result file.

    Args:
        result: content of the JSON.
        out: path of the JSON; the page is named after it.
    """
    data = result["data"]
    page = Page(
        f"Evaluation: {result['task']}",
        f"Split {data['split']} of {data['source']} data, sections {data['sections']}, seed {result['seed']}. "
        f"{BASELINE}",
        source=data["source"],
    )
    for note in result.get("notes", []):
        page.paragraph(f"Note: {note}")
    if result["skipped"]:
        page.table(["task left out", "reason"], list(result["skipped"].items()))
    add_tasks(page, result, pictures_folder(out))
    page.section("Settings")
    page.table(["setting", "value"], _settings(result))
    page.save(out.with_suffix(".html"))


def add_tasks(
    page: Page,
    result: Mapping[str, Any],
    pictures: Path,
    least_by_finding: Mapping[str, float] | None = None,
    shown: Collection[str] = (),
) -> None:
    """Add a section for every task of a result file: metrics with intervals, definitions, findings, examples.

    Args:
        page: receives the sections.
        result: content of the JSON.
        pictures: folder of its images.
        least_by_finding: task -> threshold that every finding is compared with (F1 of reports, else AUROC).
        shown: metrics that the page has shown already; they are left out.
    """
    phantom = "phantom" in result["data"]["source"].lower()
    names = {name: text.format("phantom" if phantom else "radiograph") for name, text in _SETS.items()}
    for task, details in result["details"].items():
        page.section(TITLES[task])
        metrics = {
            name: value
            for name, value in result["metrics"].items()
            if name.startswith(PREFIXES[task]) and name.removesuffix(".baseline") not in shown
        }
        if metrics:
            page.metrics(metrics, intervals=details.get("intervals"))
            page.definitions(definitions_of(metrics))
        least = (least_by_finding or {}).get(task)
        _SECTIONS[task](_Section(page, details, pictures, names, least))


def findings_below(result: Mapping[str, Any], least_by_finding: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the findings below their task's threshold: ``{task: {finding: value}}``, tasks without one included."""
    return {
        task: {
            finding: value
            for finding, value in _values_by_finding(task, result["details"][task]).items()
            if value is not None and value < least
        }
        for task, least in least_by_finding.items()
        if "per_finding" in result["details"].get(task, {})
    }


def _values_by_finding(task: str, details: Mapping[str, Any]) -> dict[str, float | None]:
    """Return F1 for report generation, else AUROC; of the first column if a result has several."""
    if task == "reports":
        return {finding: row["f1"] for finding, row in details["per_finding"].items()}
    columns = _columns(details)
    return columns[details.get("roc_of", next(iter(columns)))]


def _columns(details: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the AUROC by finding of each condition (generated, held-out, …); one without a name is "AUROC"."""
    values = details["per_finding"]
    return dict(values) if all(isinstance(value, Mapping) for value in values.values()) else {"AUROC": values}


@dataclass(frozen=True)
class _Section:
    """Content of the section of a task."""

    page: Page
    details: Mapping[str, Any]
    pictures: Path
    names: Mapping[str, str]  # of image sets, as shown
    least: float | None

    def name(self, key: str) -> str:
        return self.names.get(key, key)

    def figure(self, row: Mapping[str, Any], keys: tuple[str, ...], caption: str) -> Figure:
        """Return a figure of the images of ``row`` under those of ``keys`` that it has."""
        images = [(self.name(key), load_picture(self.pictures, row[key])) for key in keys if key in row]
        return Figure(images, caption)

    @property
    def threshold_header(self) -> list[str]:
        """Header of the column that :meth:`verdict` fills; none without a threshold."""
        return [] if self.least is None else [f"{self.least:.2f} reached"]

    def verdict(self, value: float | None) -> list[bool | None]:
        return [] if self.least is None else [None if value is None else bool(value >= self.least)]


def _tokenizer(section: _Section) -> None:
    page, details = section.page, section.details
    if details.get("nets"):
        page.table(["metric", "network"], list(details["nets"].items()))
    if "per_finding" in details:
        _per_finding(section)
    elif "findings_left_out" in details:
        page.paragraph(f"The findings in reconstructions were not evaluated: {details['findings_left_out']}")
    headings = {"first": "Originals and their reconstructions", "worst": "Lowest PSNR"}
    for kind, heading in headings.items():
        page.heading(heading)
        page.figures(
            section.figure(example, ("original", "reconstruction"), example["label"])
            for example in details["examples"]
            if example["kind"] == kind
        )


def _retrieval(section: _Section) -> None:
    page, details = section.page, section.details
    page.paragraph(
        f"{details['pool']} studies, {details['distinct_reports']} distinct reports; "
        "identical reports are one candidate."
    )
    if details.get("precision_by_class"):
        rows = details["precision_by_class"]
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        page.table(
            ["class", "studies", *columns],
            [
                [name, details["classes"][name], *(row.get(column) for column in columns)]
                for name, row in rows.items()
            ],
            "Precision at k by class, among studies with exactly one of the classes",
        )
    for heading, kind in (("Examples", "examples"), ("Queries whose report has the worst rank", "failures")):
        if details.get(kind):
            page.heading(heading)
        for example in details.get(kind, []):
            image = load_picture(section.pictures, example["picture"])
            page.figures([Figure([("as encoded by the tokenizer", image)])], "10rem")
            page.table(
                ["rank", "report", "correct"],
                [
                    [str(rank), text, right]
                    for rank, (text, right) in enumerate(zip(example["nearest"], example["right"], strict=True), 1)
                ],
                f"Reference report, at rank {example['rank']}: {example['truth']}",
            )


def _per_finding(section: _Section) -> None:
    """Add the ROC curves and a table of AUROC by finding: a column per condition and a bar for the first."""
    page, details = section.page, section.details
    columns = _columns(details)
    first = details.get("roc_of", next(iter(columns)))
    ordered = [first, *(name for name in columns if name != first)]
    positives = details.get("positives", {})
    findings = list(dict.fromkeys(name for column in columns.values() for name in column))
    header = ["finding"] + ["positives"] * bool(positives) + [section.name(name) for name in ordered]
    header += [f"{section.name(first)} and chance", *section.threshold_header]
    rows = []
    for finding in findings:
        values = [columns[name].get(finding) for name in ordered]
        row = [finding] + [positives.get(finding)] * bool(positives) + values
        row.append(None if values[0] is None else Bar(values[0], 0.5))
        rows.append(row + section.verdict(values[0]))
    page.table(header, rows, "AUROC by finding (chance 0.5)")
    if details.get("roc"):
        best = columns[first]
        panels = {
            f"{name}, AUROC {best[name]:.3f}" if best.get(name) is not None else name: {
                "model": points,
                "chance": [(0.0, 0.0), (1.0, 1.0)],
            }
            for name, points in details["roc"].items()
        }
        page.curves(panels, x="false-positive rate", y="true-positive rate")


def _finetune(section: _Section) -> None:
    page, details = section.page, section.details
    counts = ", ".join(
        f"{percent} of the labels: {count} studies" for percent, count in details["train_studies"].items()
    )
    page.paragraph(
        f"{counts}. linear: on the frozen embedding; full: all weights trained; scratch: from random initialisation."
    )
    _per_finding(section)
    if "segmentation" not in details:
        return
    found = details["segmentation"]
    columns = list(dict.fromkeys(name for row in found["findings"].values() for name in row))
    page.table(
        ["finding", *(name.removeprefix("dice_").replace("_", ", ") + " %" * ("dice" in name) for name in columns)],
        [[finding, *(row[name] for name in columns)] for finding, row in found["findings"].items()],
        "Dice by finding, over the test images with the finding",
    )
    page.heading(f"Predicted masks: {found['shown']}")
    page.figures(
        [
            section.figure(row, ("image", "truth", "marked"), f"{row['finding']}, Dice {row['dice']:.2f}")
            for row in found["examples"]
        ],
        "24rem",
    )


def _reports(section: _Section) -> None:
    page, details = section.page, section.details
    page.table(
        ["finding", "studies", "precision", "recall", "F1", "F1 as a bar", *section.threshold_header],
        [
            [finding, row["support"], row["precision"], row["recall"], row["f1"], Bar(row["f1"])]
            + section.verdict(row["f1"])
            for finding, row in details["per_finding"].items()
            if row["f1"] is not None
        ],
        "Findings of the generated reports; uncertain mentions count as positive",
    )
    if details.get("left_out"):
        page.table(["metric left out", "reason"], list(details["left_out"].items()))
    page.paragraph(
        "Underlined in the reference: words that the generated report lacks. "
        "Shaded in the generated report: words that it adds."
    )
    for heading, kind in (("Examples", "examples"), ("Reports with the lowest F1 of findings", "failures")):
        if details.get(kind):
            page.heading(heading)
        for example in details.get(kind, []):
            page.report_comparison(
                example["written"],
                example["truth"],
                title=f"Study {example['study']}",
                image=load_picture(section.pictures, example["picture"]) if "picture" in example else None,
                generated_findings=example["said_findings"],
                reference_findings=example["true_findings"],
            )


def _synthesis(section: _Section) -> None:
    page, details = section.page, section.details
    net = details["feature_net"]
    counts = ", ".join(f"{count} × {section.name(name)}" for name, count in details["images"].items())
    page.paragraph(
        f"Distances and neighbourhoods: {net['name']} ({net['features']} features, SHA-256 {net['sha256'][:12]}), "
        f"images at {net['input']}; {counts}. Values of another network, number of images or size are not comparable."
    )
    if "warning" in details:
        page.paragraph(f"Note: {details['warning']}.")
    if "per_finding" in details:
        _per_finding(section)
    for heading, kind in (("Examples", "examples"), ("Least consistent with the labels of their report", "failures")):
        if details.get(kind):
            page.heading(heading)
            page.figures(
                [section.figure(example, ("generated", "real"), example["report"]) for example in details[kind]],
                "18rem",
            )
    if details.get("variety", {}).get("examples"):
        page.heading("Several images of one prompt")
        page.figures(
            [
                Figure(
                    [("generated", load_picture(section.pictures, name)) for name in row["generated"]], row["report"]
                )
                for row in details["variety"]["examples"]
            ],
            "24rem",
        )
    if details.get("nearest_pairs"):
        page.heading("Generated images nearest to a training image")
        page.figures(
            [
                section.figure(pair, ("generated", "train"), f"distance {pair['distance']:.3g}")
                for pair in details["nearest_pairs"]
            ],
            "18rem",
        )


_SECTIONS = {
    "tokenizer": _tokenizer,
    "retrieval": _retrieval,
    "zero-shot": _per_finding,
    "reports": _reports,
    "synthesis": _synthesis,
    "finetune": _finetune,
}


def _settings(result: Mapping[str, Any]) -> list[list[str]]:
    data = result["data"]
    images = ", ".join(
        f"{key}: {data.get('transform', {}).get(key, 'not recorded')}" for key in ("size", "bits", "resize")
    )
    rows = [["command", result["command"]], ["data", data["path"]], ["manifest SHA-256", data["manifest_sha256"]]]
    rows += [["sections", data["sections"]], ["images", images]]
    rows += [
        ["intervals", f"{result['bootstrap']['interval']}, {result['bootstrap']['resamples']} resamples of patients"]
    ]
    rows += [["studies by split", ", ".join(f"{name} {count}" for name, count in data["counts"].items())]]
    rows += [
        [f"evaluated: {task}", f"{sample['studies']} studies of {sample['patients']} patients"]
        for task, sample in data["evaluated"].items()
    ]
    rows += [[f"fingerprint: {name}", str(value)] for name, value in result["model"].items()]
    rows += [[f"seconds: {name}", f"{value:.1f}"] for name, value in result["seconds"].items()]
    return rows + [[f"version: {name}", value] for name, value in result["versions"].items()]
