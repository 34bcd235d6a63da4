"""Report generation: one report written an image, judged against the study's own."""

import numpy as np

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.metrics.reports.clinical_f1 import best_constant
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult, digest
from medunifier.stage2_unified.evaluate.scores.reports import (
    References,
    Scorers,
    finding_figures,
    present,
    score_reports,
    word_figures,
)
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData, Studies, report_line

EXAMPLES = 8
TRAIN = "train"


def evaluate_reports(judging: EvaluationContext) -> TaskResult:
    """Write a report an image and score it by :func:`score_reports`.

    The references' labels are those of the data set where it has some (the phantom's are its true state),
    else those of its own report. Baselines come from the train split: for clinical F1 the best constant
    set of findings, for words the most frequent report. Without a train split there are none.
    """
    data, split = judging.data, judging.split
    scorers = Scorers(judging.scorers, judging.device)
    studies = data.studies(split, judging.limit)
    codes = data.codes(split, studies)
    given = judging.seen(split, studies).arguments
    written = [report_line(report) for report in judging.pipeline.write_reports(**given)]
    result = evaluate_written(written, data, studies, scorers)
    shown = [*range(min(EXAMPLES, len(studies))), *result.details.pop("failed")]
    decoded = judging.pipeline.decode(codes[shown])
    result.pictures = {f"reports-reconstruction-{i}": image for i, image in zip(shown, decoded, strict=True)}
    for example in result.details["examples"] + result.details["failures"]:
        example["picture"] = f"reports-reconstruction-{example['number']}"
    return result


def evaluate_written(written: list[str], data: EvaluationData, studies: Studies, scorers: Scorers) -> TaskResult:
    """Score reports of the studies of a shard folder, whoever wrote them; ``details["failed"]`` are numbers."""
    references = References(studies.ids, studies.patients, studies.texts, studies.labels)
    scores = score_reports(written, references, scorers)
    of_texts = finding_figures([label_report(text) for text in studies.texts], studies.labels)
    details = scores.details | {"labels_of_the_reference_text": of_texts, "failed": scores.failures}
    metrics = scores.samples.values()
    if data.has_split(TRAIN):
        labels, usual = data.all_labels_and_texts(TRAIN)
        if labels:
            constant = best_constant(labels, OBSERVATIONS)
            floor = word_figures([usual] * len(studies), studies.texts)
            floor |= finding_figures([constant] * len(studies), studies.labels)
            metrics |= {f"{name}.baseline": value for name, value in floor.items()}
            details["baseline"] = {"findings": list(constant), "report": usual}
    details["examples"] = examples(written, references, scores.said, range(min(EXAMPLES, len(studies))))
    details["failures"] = examples(written, references, scores.said, scores.failures)
    return TaskResult(
        metrics,
        details,
        studies=studies,
        samples={"reports": scores.samples},
        protocol=protocol_of(references, details["labeller"]),
        texts=dict(zip(studies.ids, written, strict=True)),
    )


def protocol_of(references: References, labeller: str) -> dict[str, str]:
    """What two systems' reports must have been judged by to be compared."""
    return {
        "references_sha256": digest([list(references.ids), list(references.texts)]),
        "labels_sha256": digest([dict(sorted(row.items())) for row in references.labels]),
        "labeller": labeller,
    }


def examples(
    written: list[str], references: References, said: list[dict[str, int]], numbers: range | list[int]
) -> list[dict]:
    """Reports beside their references, for the page."""
    return [
        {
            "number": i,
            "study": references.ids[i],
            "truth": references.texts[i],
            "written": written[i],
            "true_findings": present(references.labels[i]),
            "said_findings": present(said[i]),
        }
        for i in map(int, np.asarray(numbers, dtype=int))
    ]
