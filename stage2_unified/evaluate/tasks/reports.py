"""Report generation: generate a report for each study and compare it with the reference."""

import numpy as np

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.metrics.reports.clinical_f1 import best_constant
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult, digest
from medunifier.stage2_unified.evaluate.scores.reports import (
    References,
    Scorers,
    finding_metrics,
    present,
    score_reports,
    text_metrics,
)
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData, Studies, report_line

EXAMPLES = 8
TRAIN = "train"


def evaluate_reports(context: EvaluationContext) -> TaskResult:
    """Generate a report for each study and score it by :func:`score_reports`.

    The reference labels are those of the data set if it has any (for phantoms the true state), else those of the
    reference report. Baselines come from the train split: the best constant set of findings for clinical F1, the
    most frequent report for text metrics. Without a train split there are none.
    """
    data, split = context.data, context.split
    scorers = Scorers(context.scorers, context.device)
    studies = data.studies(split, context.limit)
    codes = data.codes(split, studies)
    arguments = context.model_inputs(split, studies).arguments
    generated = [report_line(report) for report in context.pipeline.write_reports(**arguments)]
    result = evaluate_generated_reports(generated, data, studies, scorers)
    pictured = [*range(min(EXAMPLES, len(studies))), *result.details.pop("failed")]
    decoded = context.pipeline.decode(codes[pictured])
    result.pictures = {f"reports-reconstruction-{i}": image for i, image in zip(pictured, decoded, strict=True)}
    for example in result.details["examples"] + result.details["failures"]:
        example["picture"] = f"reports-reconstruction-{example['number']}"
    return result


def evaluate_generated_reports(
    generated: list[str], data: EvaluationData, studies: Studies, scorers: Scorers
) -> TaskResult:
    """Score the reports of any system for studies of a shard folder; ``details["failed"]`` are study numbers."""
    references = References(studies.ids, studies.patients, studies.texts, studies.labels)
    scores = score_reports(generated, references, scorers)
    of_texts = finding_metrics([label_report(text, "chexpert") for text in studies.texts], studies.labels)
    details = scores.details | {"labels_of_the_reference_text": of_texts, "failed": scores.failures}
    metrics = scores.samples.values()
    if data.has_split(TRAIN):
        labels, most_frequent = data.all_labels_and_texts(TRAIN)
        if labels:
            constant = best_constant(labels, OBSERVATIONS)
            baseline = text_metrics([most_frequent] * len(studies), studies.texts)
            baseline |= finding_metrics([constant] * len(studies), studies.labels)
            metrics |= {f"{name}.baseline": value for name, value in baseline.items()}
            details["baseline"] = {"findings": list(constant), "report": most_frequent}
    details["examples"] = examples(generated, references, scores.predicted, range(min(EXAMPLES, len(studies))))
    details["failures"] = examples(generated, references, scores.predicted, scores.failures)
    return TaskResult(
        metrics,
        details,
        studies=studies,
        samples={"reports": scores.samples},
        protocol=protocol_of(references, details["labeller"]),
        texts=dict(zip(studies.ids, generated, strict=True)),
    )


def protocol_of(references: References, labeller: str) -> dict[str, str]:
    """Return what two results must have in common to be compared: references, labels and labeller."""
    return {
        "references_sha256": digest([list(references.ids), list(references.texts)]),
        "labels_sha256": digest([dict(sorted(row.items())) for row in references.labels]),
        "labeller": labeller,
    }


def examples(
    generated: list[str], references: References, predicted: list[dict[str, int]], numbers: range | list[int]
) -> list[dict]:
    """Return the generated reports of the studies ``numbers`` with their references, for the page."""
    return [
        {
            "number": i,
            "study": references.ids[i],
            "truth": references.texts[i],
            "written": generated[i],
            "true_findings": present(references.labels[i]),
            "said_findings": present(predicted[i]),
        }
        for i in map(int, np.asarray(numbers, dtype=int))
    ]
