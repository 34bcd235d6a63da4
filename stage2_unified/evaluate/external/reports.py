"""``medunifier evaluate external-reports``: evaluate the reports of another system as our own are."""

from dataclasses import dataclass, field
from typing import Any

from medunifier.data.reports.labeler import label_report
from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.evaluate.external.tables import check_same_ids, read_reports
from medunifier.stage2_unified.evaluate.results.files import print_figures, write_result
from medunifier.stage2_unified.evaluate.results.result import TaskResult
from medunifier.stage2_unified.evaluate.scores.reports import LocalScorers, References, Scorers, score_reports
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from medunifier.stage2_unified.evaluate.tasks.reports import EXAMPLES, evaluate_written, examples, protocol_of

DESCRIPTION = (
    "Evaluate the reports of any system. --predictions is a CSV with the columns study_id,report; --references one "
    "with study_id,report and optionally patient_id (intervals resample patients) and columns named as the 14 "
    "observations with 1, 0, -1 or nothing (else labels are read from the reference's text). --data DIR takes the "
    "references from a shard folder instead. Both sides must have the same ids, each once."
)


@dataclass(frozen=True)
class ExternalReportsConfig:
    """Evaluate the reports of any system."""

    predictions: str
    """CSV: study_id,report."""
    out: str
    """Result file, NAME.json; the page NAME.html lies beside it."""
    references: str | None = None
    """CSV: study_id,report[,patient_id][,observations]."""
    data: str | None = None
    """Shard folder whose reports are the references, in place of --references; ids are its study ids."""
    split: str = "test"
    """Of --data."""
    sections: str | None = None
    """Of --data: sections that make a report; those it was ingested with."""
    scorers: LocalScorers = field(default_factory=LocalScorers)
    """Report scorers whose files are yours."""
    seed: int = 0
    """Of the bootstrap."""
    bootstrap: int = 200
    """Resamples of the patients for an interval."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        if (self.references is None) == (self.data is None):
            raise ValueError("give either --references FILE.csv or --data DIR")
        if self.bootstrap < 2:
            raise ValueError(f"bootstrap must be at least 2, got {self.bootstrap}")


def run(config: ExternalReportsConfig, command: str) -> None:
    """Evaluate and write the result, in which ``command`` is recorded.

    Raises:
        UserError: for files that do not fit.
    """
    scorers = Scorers(config.scorers)
    predictions = read_reports(config.predictions)
    notes: list[str] = []
    if config.data is not None:
        result, data = _against_shards(config, predictions.reports, scorers, notes)
    else:
        result, data = _against_table(config, predictions.reports, scorers, notes)
    content = write_result(
        config.out,
        task="reports",
        results={"reports": result},
        data=data,
        model={"predictions": config.predictions, "predictions SHA-256": sha256_file(config.predictions)},
        command=command,
        seed=config.seed,
        bootstrap=config.bootstrap,
        notes=notes,
    )
    print_figures(content, config.out)


def _against_table(
    config: ExternalReportsConfig, written: dict[str, str], scorers: Scorers, notes: list[str]
) -> tuple[TaskResult, dict[str, Any]]:
    assert config.references is not None
    table = read_reports(config.references)
    check_same_ids(config.predictions, set(written), config.references, set(table.reports))
    ids = list(table.reports)
    texts = [table.reports[name] for name in ids]
    if not any(texts):
        raise UserError(f"{config.references} has no report with a word: there is nothing to judge against")
    if table.patients is None:
        notes.append("The references name no patients: intervals take each study as a patient of its own.")
    if table.labels is None:
        notes.append("The references have no labels: clinical F1 reads them from their text, with our labeller.")
    references = References(
        ids,
        ids if table.patients is None else [table.patients[name] for name in ids],
        texts,
        [label_report(text) for text in texts] if table.labels is None else [table.labels[name] for name in ids],
    )
    said = [written[name] for name in ids]
    scores = score_reports(said, references, scorers)
    details = scores.details | {
        "examples": examples(said, references, scores.said, range(min(EXAMPLES, len(ids)))),
        "failures": examples(said, references, scores.said, scores.failures),
    }
    result = TaskResult(
        scores.samples.values(),
        details,
        samples={"reports": scores.samples},
        protocol=protocol_of(references, details["labeller"]),
        texts=dict(zip(ids, said, strict=True)),
    )
    data = {
        "path": config.references,
        "manifest_sha256": sha256_file(config.references),
        "kind": "table",
        "source": "table",
        "sections": "as given",
        "split": "as given",
        "counts": {"as given": len(ids)},
        "judged": {"reports": {"studies": len(ids), "patients": len(set(references.patients)), "ids": ids}},
    }
    return result, data


def _against_shards(
    config: ExternalReportsConfig, written: dict[str, str], scorers: Scorers, notes: list[str]
) -> tuple[TaskResult, dict[str, Any]]:
    assert config.data is not None
    data = EvaluationData(config.data, None, config.seed, config.sections, set(written))
    if not data.has_split(config.split):
        raise UserError(f"{config.data} has no samples of split {config.split!r}")
    studies = data.studies(config.split)
    # A model's own draw is a part of the split, so the split may have more; what is said must be there with a text.
    everything = len(EvaluationData(config.data, None, config.seed, config.sections).studies(config.split))
    if len(studies) < everything:
        notes.append(f"The predictions cover {len(studies)} of the {everything} studies of the split.")
    check_same_ids(config.predictions, set(written), f"{config.data}, split {config.split}", set(studies.ids))
    result = evaluate_written([written[name] for name in studies.ids], data, studies, scorers)
    result.details.pop("failed")
    return result, data.describe(config.split, {"reports": studies})
