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
    "finetune": "Linear probe on the frozen image embedding",
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
    for example in details["examples"]:
        page.figures([Figure([("as the model sees it", load_picture(pictures, example["picture"]))])], "10rem")
        page.table(
            ["rank", "report", "its own"],
            [
                [str(rank), text, right]
                for rank, (text, right) in enumerate(zip(example["nearest"], example["right"], strict=True), start=1)
            ],
            f"own report: {example['truth']}",
        )


def _per_finding(page: Page, details: Mapping[str, Any], pictures: Path) -> None:
    """AUROC by finding: one column, or one a condition."""
    values = details["per_finding"]
    columns = values if all(isinstance(value, Mapping) for value in values.values()) else {"AUROC": values}
    findings = list(dict.fromkeys(name for column in columns.values() for name in column))
    positives = details.get("positives", {})
    page.table(
        ["finding", "positives", *columns],
        [[name, positives.get(name), *(column.get(name) for column in columns.values())] for name in findings],
        "AUROC by finding (chance 0.5)",
    )


def _reports(page: Page, details: Mapping[str, Any], pictures: Path) -> None:
    rows = [
        [name, row["precision"], row["recall"], row["f1"], row["support"]]
        for name, row in details["per_finding"].items()
        if row["f1"] is not None
    ]
    page.table(["finding", "precision", "recall", "F1", "support"], rows, "Uncertain counted as positive")
    page.paragraph(
        "Underlined in the truth: words that the written report lacks; shaded in the written: words it adds."
    )
    for i, example in enumerate(details["examples"], start=1):
        page.report_beside_truth(
            example["written"],
            example["truth"],
            title=f"Study {i}",
            image=load_picture(pictures, example["picture"]),
            said=example["said_findings"],
            true=example["true_findings"],
        )


def _synthesis(page: Page, details: Mapping[str, Any], pictures: Path) -> None:
    _per_finding(page, details, pictures)
    page.figures(
        [
            Figure(
                [(name, load_picture(pictures, example[name])) for name in ("generated", "real")], example["report"]
            )
            for example in details["examples"]
        ],
        "18rem",
    )


_SECTIONS = {
    "tokenizer": _tokenizer,
    "retrieval": _retrieval,
    "zero-shot": _per_finding,
    "reports": _reports,
    "synthesis": _synthesis,
    "finetune": _per_finding,
}


def _circumstances(result: Mapping[str, Any]) -> list[list[str]]:
    data = result["data"]
    rows = [["command", result["command"]], ["data", data["path"]], ["manifest SHA-256", data["manifest_sha256"]]]
    rows += [["studies by split", ", ".join(f"{name} {count}" for name, count in data["counts"].items())]]
    rows += [
        [f"judged: {task}", f"{draw['studies']} studies of {draw['patients']} patients"]
        for task, draw in data["judged"].items()
    ]
    rows += [[f"fingerprint: {name}", str(value)] for name, value in result["model"].items()]
    rows += [[f"seconds: {name}", f"{value:.1f}"] for name, value in result["seconds"].items()]
    return rows + [[f"version: {name}", value] for name, value in result["versions"].items()]
