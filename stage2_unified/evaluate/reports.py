"""Report generation: words by BLEU, ROUGE-L and CIDEr, and what they say by clinical F1."""

from typing import Literal

import numpy as np

from data.labels import label_report
from data.observations import LEADERBOARD, OBSERVATIONS
from shared.metrics.bleu import bleu
from shared.metrics.bootstrap import bootstrap_interval
from shared.metrics.cider import cider
from shared.metrics.clinical_f1 import Labels, best_constant, clinical_f1
from shared.metrics.rouge import rouge_l
from stage2_unified.evaluate.result import Judging, TaskResult, interval
from stage2_unified.evaluate.studies import report_line

EXAMPLES = 8
TRAIN = "train"

# The name's ending, the findings, and the rule for doubt. The first is the headline.
VARIANTS: tuple[tuple[str, tuple[str, ...], Literal["positive", "negative"]], ...] = (
    ("", OBSERVATIONS, "positive"),
    ("_5", LEADERBOARD, "positive"),
    ("_uncertain_negative", OBSERVATIONS, "negative"),
    ("_5_uncertain_negative", LEADERBOARD, "negative"),
)


def judge_reports(judging: Judging) -> TaskResult:
    """One report written an image, judged against the study's own.

    Clinical F1 compares `label_report` of the written text with the sample's labels: those of the data set
    where it has some (the phantom's are its true state), else those of its own report. References are not
    shortened. Baselines come from the train split: for clinical F1 the best constant set of findings, for
    words the most frequent report. Without a train split there are none.
    """
    data, split = judging.data, judging.split
    studies = data.studies(split, judging.limit)
    codes = data.codes(split, studies)
    written = [report_line(report) for report in judging.pipeline.write_reports(codes, studies.views)]
    said = [label_report(text) for text in written]

    metrics = _words(written, studies.texts) | _findings(said, studies.labels)
    details = {
        "per_finding": clinical_f1(said, studies.labels, OBSERVATIONS)["per_finding"],
        "labels_of_the_reference_text": _findings([label_report(text) for text in studies.texts], studies.labels),
        "empty_reports": sum(not text.strip() for text in written),
        "distinct_reports": len(set(written)),
        "labeller": "data.labels.label_report",
        "references": "one a study, not shortened",
    }
    if data.has_split(TRAIN):
        labels, usual = data.all_labels_and_texts(TRAIN)
        if labels:
            constant = best_constant(labels, OBSERVATIONS)
            floor = _words([usual] * len(studies), studies.texts) | _findings(
                [constant] * len(studies), studies.labels
            )
            metrics |= {f"{name}.baseline": value for name, value in floor.items()}
            details["baseline"] = {"findings": list(constant), "report": usual}

    def micro(rows: np.ndarray) -> float:
        drawn = [said[i] for i in rows], [studies.labels[i] for i in rows]
        return float(clinical_f1(drawn[0], drawn[1], OBSERVATIONS)["micro"])

    bounds = bootstrap_interval(micro, studies.patients, judging.bootstrap, seed=judging.seed)
    details["intervals"] = {"reports.clinical_f1_micro": interval(bounds)}
    shown = judging.pipeline.decode(codes[:EXAMPLES])
    details["examples"] = [
        {
            "picture": f"reports-reconstruction-{i}",
            "truth": studies.texts[i],
            "written": written[i],
            "true_findings": _present(studies.labels[i]),
            "said_findings": _present(said[i]),
        }
        for i in range(len(shown))
    ]
    pictures = {f"reports-reconstruction-{i}": image for i, image in enumerate(shown)}
    return TaskResult(metrics, details, pictures, studies)


def _words(written: list[str], references: list[str]) -> dict[str, float]:
    scores = bleu(written, references) | {
        "rouge_l": rouge_l(written, references),
        "cider": cider(written, references),
    }
    return {f"reports.{name}": value for name, value in scores.items()}


def _findings(said: list[dict[str, int]] | list[Labels], truth: list[dict[str, int]]) -> dict[str, float]:
    metrics = {}
    for ending, findings, uncertain in VARIANTS:
        scores = clinical_f1(said, truth, findings, uncertain)
        metrics[f"reports.clinical_f1_micro{ending}"] = scores["micro"]
        metrics[f"reports.clinical_f1_macro{ending}"] = scores["macro"]
    return metrics


def _present(labels: dict[str, int]) -> list[str]:
    """Findings stated or suspected, in the table's order."""
    return [name for name in OBSERVATIONS if labels.get(name) in (1, -1)]
