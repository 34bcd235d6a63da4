"""Compare generated reports of any system with references: text metrics, findings and local language models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import LEADERBOARD, OBSERVATIONS
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.reports.bertscore import BertScore
from medunifier.shared.metrics.reports.bleu import bleu, bleu_counts
from medunifier.shared.metrics.reports.chexbert import Chexbert
from medunifier.shared.metrics.reports.cider import cider_each
from medunifier.shared.metrics.reports.clinical_f1 import Labels, clinical_f1, f1_counts
from medunifier.shared.metrics.reports.meteor import load_wordnet, meteor_each
from medunifier.shared.metrics.reports.radgraph import LEVELS, RadGraph
from medunifier.shared.metrics.reports.rouge import rouge_l_each
from medunifier.shared.metrics.samples import Samples, Statistic, mean_of

FAILURES = 4

# (suffix of the name, findings, rule for uncertain mentions). The first is the headline.
VARIANTS: tuple[tuple[str, tuple[str, ...], Literal["positive", "negative"]], ...] = (
    ("", OBSERVATIONS, "positive"),
    ("_5", LEADERBOARD, "positive"),
    ("_uncertain_negative", OBSERVATIONS, "negative"),
    ("_5_uncertain_negative", LEADERBOARD, "negative"),
)


@dataclass(frozen=True)
class LocalScorers:
    """Scorers that need files of the user. Those without files are left out and listed in the result."""

    wordnet: str | None = None
    """nltk_data folder with WordNet, for METEOR."""
    bertscore: str | None = None
    """transformers folder, for BERTScore."""
    bertscore_layer: int | None = None
    """Hidden layer that BERTScore compares; default: the last."""
    chexbert: str | None = None
    """Folder with chexbert.pth and bert-base-uncased's config.json and vocab.txt, for CheXbert F1."""
    radgraph: str | None = None
    """Folder with the radgraph package's model, for RadGraph F1."""

    def left_out(self) -> dict[str, str]:
        """Return the metrics that are not computed, and the option that each needs."""
        needs = {"meteor": "wordnet", "bertscore": "bertscore", "chexbert_f1": "chexbert", "radgraph": "radgraph"}
        return {
            metric: f"--scorers.{option} is not set (its files are not part of this project)"
            for metric, option in needs.items()
            if getattr(self, option) is None
        }


class Scorers:
    """Load the local scorers, so that missing files fail before hours of report generation.

    Args:
        local: paths of their files.
        device: torch device; default: an accelerator if there is one.

    Raises:
        UserError: if files of a scorer are missing or invalid; it names the first.
    """

    def __init__(self, local: LocalScorers, device: str | None = None) -> None:
        if local.bertscore_layer is not None and local.bertscore is None:
            raise UserError("--scorers.bertscore_layer is set without --scorers.bertscore: pass the model's folder")
        self.each: dict[str, Callable[[Sequence[str], Sequence[str]], np.ndarray]] = {}
        self.described: dict[str, Any] = {}
        self.left_out = local.left_out()
        if local.wordnet is not None:
            wordnet = load_wordnet(local.wordnet)
            self.each["meteor"] = lambda generated, texts: meteor_each(generated, texts, wordnet)
            self.described["meteor"] = {"library": "nltk", "alpha": 0.9, "beta": 3.0, "gamma": 0.5}
        if local.bertscore is not None:
            bertscore = BertScore(local.bertscore, local.bertscore_layer, device)
            self.each["bertscore"] = bertscore
            self.described["bertscore"] = bertscore.describe()
        self.chexbert = None if local.chexbert is None else Chexbert(local.chexbert, OBSERVATIONS, device)
        if self.chexbert is not None:
            self.described["chexbert_f1"] = self.chexbert.describe()
        self.radgraph = None if local.radgraph is None else RadGraph(local.radgraph)
        if self.radgraph is not None:
            self.described["radgraph"] = {"model": "radgraph", "levels": list(LEVELS)}


@dataclass(frozen=True)
class References:
    """Reference reports and labels of N studies.

    Attributes:
        ids, patients: of the studies.
        texts: the reports, on one line each.
        labels: ``{finding: 1 | 0 | -1}`` of each study.
    """

    ids: Sequence[str]
    patients: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[Labels]


@dataclass(frozen=True)
class ReportScores:
    """Result of :func:`score_reports`.

    Attributes:
        samples: scores by study, with the metrics computed from them.
        predicted: labels of the generated reports.
        details: for the result file.
        failures: numbers of the worst studies, worst first.
    """

    samples: Samples
    predicted: list[dict[str, int]]
    details: dict[str, Any]
    failures: list[int]


def score_reports(generated: Sequence[str], references: References, scorers: Scorers) -> ReportScores:
    """Compute BLEU-1..4, ROUGE-L, CIDEr, clinical F1 and the metrics of the local scorers.

    Clinical F1 is taken over 14 and 5 findings with uncertain mentions as positive and as negative; it compares
    `label_report` of the generated report (No Finding by chexpert-labeler's rule, as in the labels of MIMIC-CXR and
    phantoms) with the reference labels. CheXbert F1 labels both texts with CheXbert, as
    in its papers. References are not truncated.
    """
    texts = references.texts
    counts = ("bleu_hits", "bleu_totals", "bleu_lengths")
    table: dict[str, np.ndarray] = dict(zip(counts, bleu_counts(generated, texts), strict=True))
    statistics = {f"reports.bleu{n}": Statistic(f"bleu{n}", counts) for n in (1, 2, 3, 4)}
    for name, score in ({"rouge_l": rouge_l_each, "cider": cider_each} | scorers.each).items():
        table[name] = score(generated, texts)
        statistics[f"reports.{name}"] = mean_of(name)
    predicted = [label_report(text, "chexpert") for text in generated]
    _add_findings(table, statistics, "clinical_f1", predicted, references.labels)
    if scorers.chexbert is not None:
        _add_findings(table, statistics, "chexbert_f1", scorers.chexbert(generated), scorers.chexbert(texts))
    if scorers.radgraph is not None:
        for level, values in scorers.radgraph(generated, texts).items():
            table[f"radgraph_{level}"] = values
            statistics[f"reports.radgraph_{level}"] = mean_of(f"radgraph_{level}")
    details = {
        "per_finding": clinical_f1(predicted, references.labels, OBSERVATIONS)["per_finding"],
        "empty_reports": sum(not text.strip() for text in generated),
        "empty_references": sum(not text.strip() for text in texts),
        "distinct_reports": len(set(generated)),
        "labeller": "medunifier.data.reports.labeler.label_report",
        "no_finding": "chexpert",
        "references": "one a study, not truncated",
        "scorers": scorers.described,
        "left_out": scorers.left_out,
    }
    samples = Samples("study", list(references.ids), list(references.patients), table, statistics)
    return ReportScores(samples, predicted, details, _worst(table))


def text_metrics(generated: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return BLEU, ROUGE-L and CIDEr by their names in a result file."""
    scores = bleu(generated, references)
    scores |= {"rouge_l": float(rouge_l_each(generated, references).mean())}
    scores |= {"cider": float(cider_each(generated, references).mean())}
    return {f"reports.{name}": value for name, value in scores.items()}


def finding_metrics(predicted: Sequence[Labels], truth: Sequence[Labels]) -> dict[str, float]:
    """Return micro and macro clinical F1 in all variants by their names in a result file."""
    metrics: dict[str, float] = {}
    for suffix, findings, uncertain in VARIANTS:
        scores = clinical_f1(predicted, truth, findings, uncertain)
        metrics[f"reports.clinical_f1_micro{suffix}"] = scores["micro"]
        metrics[f"reports.clinical_f1_macro{suffix}"] = scores["macro"]
    return metrics


def _add_findings(
    table: dict[str, np.ndarray],
    statistics: dict[str, Statistic],
    metric: str,
    predicted: Sequence[Labels],
    truth: Sequence[Labels],
) -> None:
    """Add the columns and the metrics of one labeller in all variants."""
    for suffix, findings, uncertain in VARIANTS:
        names = tuple(f"{metric}{suffix}_{count}" for count in ("hits", "predicted", "true"))
        table |= dict(zip(names, f1_counts(predicted, truth, findings, uncertain), strict=True))
        statistics[f"reports.{metric}_micro{suffix}"] = Statistic("f1_micro", names)
        statistics[f"reports.{metric}_macro{suffix}"] = Statistic("f1_macro", names)


def _worst(table: dict[str, np.ndarray]) -> list[int]:
    """Return the studies with the lowest F1 over their findings; ties are ordered by ROUGE-L."""
    hits, predicted, true = (table[f"clinical_f1_{count}"].sum(axis=1) for count in ("hits", "predicted", "true"))
    f1 = np.where(predicted + true > 0, 2 * hits / np.maximum(predicted + true, 1), 1.0)
    return [int(i) for i in np.lexsort((table["rouge_l"], f1))[:FAILURES] if f1[i] < 1]


def present(labels: Labels) -> list[str]:
    """Return the positive and uncertain findings, in the order of the observations."""
    return [name for name in OBSERVATIONS if labels.get(name) in (1, -1)]
