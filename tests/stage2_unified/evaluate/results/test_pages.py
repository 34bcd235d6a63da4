"""The page of a result file shows each metric once, with definition and interval, and findings with a verdict."""

import json
import re

import numpy as np
import pytest

from medunifier.shared.report_page.page import Page
from medunifier.stage2_unified.evaluate.results import pages
from medunifier.stage2_unified.evaluate.results.definitions import definition_of, definitions_of
from medunifier.stage2_unified.evaluate.results.pages import PREFIXES, add_tasks, findings_below


@pytest.fixture
def result(root):
    return json.loads((root / "models" / "phantom" / "evaluation.json").read_text())


def rendered(result, monkeypatch, source="phantom", **options):
    monkeypatch.setattr(pages, "load_picture", lambda folder, name: np.zeros((2, 2), dtype=np.uint8))
    page = Page("t", source=source)
    add_tasks(page, result | {"data": {"source": source}}, None, **options)
    return page.html()


def rows_of(html):
    return [
        re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    ]


def test_each_metric_is_shown_once_with_its_interval(result, monkeypatch):
    first_cells = [row[0] for row in rows_of(rendered(result, monkeypatch)) if row]
    names = [name for name in result["metrics"] if not name.endswith(".baseline")]
    assert [first_cells.count(name) for name in names] == [1] * len(names)
    row = next(row for row in rows_of(rendered(result, monkeypatch)) if row and row[0] == "matching.auroc")
    low, high = result["details"]["retrieval"]["intervals"]["matching.auroc"]
    assert row[-1] == f"{low:.3f} to {high:.3f}"


def test_every_metric_has_a_definition(result):
    names = {name for name in result["metrics"] if not name.endswith(".baseline")}
    others = [
        "tokenizer.lpips",
        "tokenizer.label_auroc_change",
        "tokenizer.rfid",
        "tokenizer.radiograph_distance",
        "reports.meteor",
        "reports.chexbert_f1_micro_5",
        "reports.radgraph_partial",
        "retrieval.reranked_text_to_image_r5",
        "finetune.gain_10",
        "finetune.full_dice_all_10",
        "finetune.dice_gain_100",
        "finetune.scratch_accuracy_1",
    ]
    assert not [name for name in (*names, *others) if definition_of(name) is None]
    assert definition_of("retrieval.unknown") is None
    assert {name for key in definitions_of(result["metrics"]) for name in key.split(", ")} == names


def test_every_metric_belongs_to_one_task(result):
    for name in result["metrics"]:
        assert sum(name.startswith(prefixes) for prefixes in PREFIXES.values()) == 1, name


def test_held_out_phantoms_are_not_called_real(result, monkeypatch):
    html = rendered(result, monkeypatch)
    text = re.sub(r"synthesis\.label_auroc\.real|\.real", "", re.sub(r"data:image[^\"]*", "", html))
    assert "held-out phantom" in text and not re.search(r"\breal\b", text)
    assert "held-out radiograph" in rendered(result, monkeypatch, source="openi")


def test_metrics_that_the_page_has_shown_are_left_out(result, monkeypatch):
    left_out = {"matching.auroc", "synthesis.label_auroc"}
    first_cells = [row[0] for row in rows_of(rendered(result, monkeypatch, shown=left_out)) if row]
    assert not left_out & set(first_cells) and "matching.accuracy" in first_cells


def test_findings_below_their_threshold_are_listed_and_marked(result, monkeypatch):
    result["details"]["reports"]["per_finding"]["Lung Lesion"]["f1"] = 0.62
    result["details"]["synthesis"]["per_finding"]["generated"]["Lung Opacity"] = 0.7
    least = {"reports": 0.8, "synthesis": 0.8, "finetune": 0.0}
    below = findings_below(result, least)
    assert below == {"reports": {"Lung Lesion": 0.62}, "synthesis": {"Lung Opacity": 0.7}, "finetune": {}}
    html = rendered(result, monkeypatch, least_by_finding=least)
    verdicts = {row[0]: row[-1] for row in rows_of(html) if row and "no" in row}
    assert verdicts["Lung Lesion"] == verdicts["Lung Opacity"] == "no"
