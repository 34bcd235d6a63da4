"""What a result file says, for people. A page is made of the JSON and its pictures alone, so it can be made again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.page import Figure, Page
from stage2_unified.evaluate.pictures import load_picture, pictures_folder

TITLES = {
    "tokenizer": "Tokenizer: radiographs through codes and back",
    "retrieval": "Retrieval: radiographs and reports find each other",
    "zero-shot": "Zero-shot classification by prompts",
    "reports": "Reports written from radiographs",
    "synthesis": "Radiographs drawn from reports",
    "finetune": "Fine-tuning by share of labels: linear probe and whole network",
}


def write_page(result: Mapping[str, Any], out: Path) -> None:
    """The page beside a result file.

    Args:
        result: content of the JSON.
        out: the JSON's path; the page takes its stem.
    """
    data = result["data"]
    page = Page(
        f"Evaluation: {result['task']}",
        f"Split {data['split']} of {data['source']} data, sections {data['sections']}, seed {result['seed']}.",
        source=data["source"],
    )
    page.section("Figures", "Each beside what chance or a trivial prediction earns (the mark on the bar).")
    for note in result.get("notes", []):
        page.paragraph(f"Note: {note}")
    page.metrics(result["metrics"])
    if result["skipped"]:
        page.table(["task left out", "why"], list(result["skipped"].items()))
    add_tasks(page, result, pictures_folder(out))
    page.section("Circumstances")
    page.table(["what", "value"], _circumstances(result))
    page.save(out.with_suffix(".html"))


def add_tasks(page: Page, result: Mapping[str, Any], pictures: Path) -> None:
    """A section for every task of a result file, with its examples."""
    for task, details in result["details"].items():
        page.section(TITLES[task])
        if intervals := {name: bounds for name, bounds in details.get("intervals", {}).items() if bounds}:
            rows = [[name, result["metrics"].get(name), *bounds] for name, bounds in intervals.items()]
            page.table(["figure", "value", "from", "to"], rows, "95 % bootstrap interval over patients")
        _SECTIONS[task](page, details, pictures)


def _tokenizer(page: Page, details: Mapping[str, Any], pictures: Path) -> None:
    if details.get("nets"):
        page.table(["figure", "net that it was measured with"], list(details["nets"].items()))
    if "per_finding" in details:
        _per_finding(page, details, pictures)
    elif "findings_left_out" in details:
        page.paragraph(f"What survives of each finding was not judged: {details['findings_left_out']}")
    headings = {"first": "Originals and their reconstructions", "worst": "Least like themselves"}
    for kind, heading in headings.items():
        page.heading(heading)
        page.figures(
            Figure(
                [(name, load_picture(pictures, example[name])) for name in ("original", "reconstruction")],
                example["label"],
            )
            for example in details["examples"]
            if example["kind"] == kind
        )


def _retrieval(page: Page, details: Mapping[str, Any], pictures: Path) -> None:
    page.paragraph(
        f"{details['pool']} studies, {details['distinct_reports']} distinct reports; equal ones are one candidate."
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
            "Share of the nearest that are of the query's class, among studies with exactly one of the classes",
        )
    for heading, kind in (("Examples", "examples"), ("Whose own report came last", "failures")):
        if details.get(kind):
            page.heading(heading)
        for example in details.get(kind, []):
            page.figures([Figure([("as the model sees it", load_picture(pictures, example["picture"]))])], "10rem")
            page.table(
                ["rank", "report", "its own"],
                [
                    [str(rank), text, right]
                    for rank, (text, right) in enumerate(zip(example["nearest"], example["right"], strict=True), 1)
                ],
                f"own report, at rank {example['rank']}: {example['truth']}",
            )


def _per_finding(page: Page, details: Mapping[str, Any], pictures: Path) -> None:
    """AUROC by finding: a bar each for the first condition, a column for each, and the ROC curves."""
    values = details["per_finding"]
    columns = values if all(isinstance(value, Mapping) for value in values.values()) else {"AUROC": values}
    shown = details.get("roc_of", next(iter(columns)))
    first, best = shown, columns[shown]
    bars = {name: value for name, value in best.items() if value is not None}
    page.metrics(bars | {f"{name}.baseline": 0.5 for name in bars}, caption=f"AUROC by finding ({first})")
    findings = list(dict.fromkeys(name for column in columns.values() for name in column))
    positives = details.get("positives", {})
    if len(columns) > 1 or positives:
        page.table(
            ["finding", "positives", *columns],
            [[name, positives.get(name), *(column.get(name) for column in columns.values())] for name in findings],
            "AUROC by finding (chance 0.5)",
        )
    if details.get("roc"):
        page.curves(
            {
                name if name not in best else f"{name}, AUROC {best[name]:.3f}": {
                    "curve": points,
                    "chance": [(0.0, 0.0), (1.0, 1.0)],
                }
                for name, points in details["roc"].items()
            }
        )


def _finetune(page: Page, details: Mapping[str, Any], pictures: Path) -> None:
    counts = ", ".join(f"{share} of the labels: {count} studies" for share, count in details["train_studies"].items())
    page.paragraph(f"{counts}. linear: on the frozen embedding; full: all weights trained; scratch: from fresh ones.")
    _per_finding(page, details, pictures)
    if "segmentation" not in details:
        return
    found = details["segmentation"]
    columns = list(dict.fromkeys(name for row in found["findings"].values() for name in row))
    page.table(
        ["finding", *(name.removeprefix("dice_").replace("_", ", ") + " %" * ("dice" in name) for name in columns)],
        [[finding, *(row[name] for name in columns)] for finding, row in found["findings"].items()],
        "Dice by finding, over the test images that have it",
    )
    page.heading(f"Where findings were marked: {found['shown']}")
    page.figures(
        [
            Figure(
                [(kind, load_picture(pictures, row[kind])) for kind in ("image", "truth", "marked")],
                f"{row['finding']}, Dice {row['dice']:.2f}",
            )
            for row in found["examples"]
        ],
        "24rem",
    )


def _reports(page: Page, details: Mapping[str, Any], pictures: Path) -> None:
    rows = [
        [name, row["precision"], row["recall"], row["f1"], row["support"]]
        for name, row in details["per_finding"].items()
        if row["f1"] is not None
    ]
    page.metrics({name: f1 for name, _, _, f1, _ in rows}, caption="F1 by finding, uncertain counted as positive")
    page.table(["finding", "precision", "recall", "F1", "support"], rows, "Uncertain counted as positive")
    if details.get("left_out"):
        page.table(["figure left out", "why"], list(details["left_out"].items()))
    page.paragraph(
        "Underlined in the truth: words that the written report lacks; shaded in the written: words it adds."
    )
    for heading, kind in (("Examples", "examples"), ("Worst by their findings", "failures")):
        if details.get(kind):
            page.heading(heading)
        for example in details.get(kind, []):
            page.report_beside_truth(
                example["written"],
                example["truth"],
                title=f"Study {example['study']}",
                image=load_picture(pictures, example["picture"]) if "picture" in example else None,
                said=example["said_findings"],
                true=example["true_findings"],
            )


def _synthesis(page: Page, details: Mapping[str, Any], pictures: Path) -> None:
    net, images = details["feature_net"], details["images"]
    counts = ", ".join(f"{count} {name}" for name, count in images.items())
    page.paragraph(
        f"Distances and neighbourhoods: {net['name']} ({net['features']} features, SHA-256 {net['sha256'][:12]}), "
        f"images at {net['input']}; {counts}. Figures of another net, count or size do not compare."
    )
    if "warning" in details:
        page.paragraph(f"Note: {details['warning']}.")
    if "per_finding" in details:
        _per_finding(page, details, pictures)
    for heading, kind in (("Examples", "examples"), ("Least like what was asked for", "failures")):
        if details.get(kind):
            page.heading(heading)
            page.figures(
                [
                    _figure_of(pictures, example, ("generated", "real"), example["report"])
                    for example in details[kind]
                ],
                "18rem",
            )
    if details.get("variety", {}).get("examples"):
        page.heading("Several images of one prompt")
        page.figures(
            [
                Figure([("generated", load_picture(pictures, name)) for name in row["generated"]], row["report"])
                for row in details["variety"]["examples"]
            ],
            "24rem",
        )
    if details.get("nearest_pairs"):
        page.heading("Nearest to a training image")
        page.figures(
            [
                _figure_of(pictures, pair, ("generated", "train"), f"distance {pair['distance']:.3g}")
                for pair in details["nearest_pairs"]
            ],
            "18rem",
        )


def _figure_of(pictures: Path, row: Mapping[str, Any], names: tuple[str, ...], caption: str) -> Figure:
    return Figure([(name, load_picture(pictures, row[name])) for name in names if name in row], caption)


_SECTIONS = {
    "tokenizer": _tokenizer,
    "retrieval": _retrieval,
    "zero-shot": _per_finding,
    "reports": _reports,
    "synthesis": _synthesis,
    "finetune": _finetune,
}


def _circumstances(result: Mapping[str, Any]) -> list[list[str]]:
    data = result["data"]
    rows = [["command", result["command"]], ["data", data["path"]], ["manifest SHA-256", data["manifest_sha256"]]]
    rows += [["sections", data["sections"]], ["images", ", ".join(f"{k}: {v}" for k, v in _image_form(data).items())]]
    rows += [["intervals", f"{result['bootstrap']['interval']}, {result['bootstrap']['draws']} draws by patient"]]
    rows += [["studies by split", ", ".join(f"{name} {count}" for name, count in data["counts"].items())]]
    rows += [
        [f"judged: {task}", f"{draw['studies']} studies of {draw['patients']} patients"]
        for task, draw in data["judged"].items()
    ]
    rows += [[f"fingerprint: {name}", str(value)] for name, value in result["model"].items()]
    rows += [[f"seconds: {name}", f"{value:.1f}"] for name, value in result["seconds"].items()]
    return rows + [[f"version: {name}", value] for name, value in result["versions"].items()]


def _image_form(data: Mapping[str, Any]) -> dict[str, Any]:
    """Size, bit depth and resize of the images."""
    return {key: data.get("transform", {}).get(key, "not recorded") for key in ("size", "bits", "resize")}
