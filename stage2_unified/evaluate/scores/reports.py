"""Written reports against their references, whoever wrote them: words, findings, and local language models."""

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

# The name's ending, the findings, and the rule for doubt. The first is the headline.
VARIANTS: tuple[tuple[str, tuple[str, ...], Literal["positive", "negative"]], ...] = (
    ("", OBSERVATIONS, "positive"),
    ("_5", LEADERBOARD, "positive"),
    ("_uncertain_negative", OBSERVATIONS, "negative"),
    ("_5_uncertain_negative", LEADERBOARD, "negative"),
)


@dataclass(frozen=True)
class LocalScorers:
    """Scorers whose files are the user's; what is not named is left out, and the result says so."""

    wordnet: str | None = None
    """nltk_data folder with WordNet, for METEOR."""
    bertscore: str | None = None
    """transformers folder, for BERTScore."""
    bertscore_layer: int | None = None
    """Hidden layer that BERTScore compares; the last if not given."""
    chexbert: str | None = None
    """Folder with chexbert.pth and bert-base-uncased's config.json and vocab.txt, for CheXbert F1."""
    radgraph: str | None = None
    """Folder with the radgraph package's model, for RadGraph F1."""

    def left_out(self) -> dict[str, str]:
        """Figures that are not computed, and what they would need."""
        needs = {"meteor": "wordnet", "bertscore": "bertscore", "chexbert_f1": "chexbert", "radgraph": "radgraph"}
        return {
            figure: f"no --scorers.{option} was given (its files are not part of this project)"
            for figure, option in needs.items()
            if getattr(self, option) is None
        }


class Scorers:
    """The named scorers, loaded: before hours of writing reports, not after.

    Args:
        local: where their files are.
        device: where they run; an accelerator if there is one.

    Raises:
        UserError: of the first whose files are absent or do not fit.
    """

    def __init__(self, local: LocalScorers, device: str | None = None) -> None:
        if local.bertscore_layer is not None and local.bertscore is None:
            raise UserError("--scorers.bertscore_layer says which layer, but no --scorers.bertscore names a model")
        self.each: dict[str, Callable[[Sequence[str], Sequence[str]], np.ndarray]] = {}
        self.described: dict[str, Any] = {}
        self.left_out = local.left_out()
        if local.wordnet is not None:
            wordnet = load_wordnet(local.wordnet)
            self.each["meteor"] = lambda written, texts: meteor_each(written, texts, wordnet)
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
    """What reports are judged against.

    Attributes:
        ids, patients: of the N studies.
        texts: their reports, one line each.
        labels: ``{finding: 1 | 0 | -1}`` of each.
    """

    ids: Sequence[str]
    patients: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[Labels]


@dataclass(frozen=True)
class ReportScores:
    """What :func:`score_reports` finds.

    Attributes:
        samples: rows of every figure.
        said: labels of the written reports.
        details: for the result file.
        failures: numbers of the studies that came out worst, worst first.
    """

    samples: Samples
    said: list[dict[str, int]]
    details: dict[str, Any]
    failures: list[int]


def score_reports(written: Sequence[str], references: References, scorers: Scorers) -> ReportScores:
    """BLEU-1..4, ROUGE-L, CIDEr, clinical F1 over 14 and 5 by both rules for doubt, and what is local.

    Clinical F1 compares `label_report` of the written text with the references' labels. CheXbert's F1
    labels both texts with CheXbert, as its papers do. References are not shortened.
    """
    texts = references.texts
    counts = ("bleu_hits", "bleu_totals", "bleu_lengths")
    table: dict[str, np.ndarray] = dict(zip(counts, bleu_counts(written, texts), strict=True))
    statistics = {f"reports.bleu{n}": Statistic(f"bleu{n}", counts) for n in (1, 2, 3, 4)}
    for name, score in ({"rouge_l": rouge_l_each, "cider": cider_each} | scorers.each).items():
        table[name] = score(written, texts)
        statistics[f"reports.{name}"] = mean_of(name)
    said = [label_report(text) for text in written]
    _add_findings(table, statistics, "clinical_f1", said, references.labels)
    if scorers.chexbert is not None:
        _add_findings(table, statistics, "chexbert_f1", scorers.chexbert(written), scorers.chexbert(texts))
    if scorers.radgraph is not None:
        for level, values in scorers.radgraph(written, texts).items():
            table[f"radgraph_{level}"] = values
            statistics[f"reports.radgraph_{level}"] = mean_of(f"radgraph_{level}")
    details = {
        "per_finding": clinical_f1(said, references.labels, OBSERVATIONS)["per_finding"],
        "empty_reports": sum(not text.strip() for text in written),
        "empty_references": sum(not text.strip() for text in texts),
        "distinct_reports": len(set(written)),
        "labeller": "medunifier.data.reports.labeler.label_report",
        "references": "one a study, not shortened",
        "scorers": scorers.described,
        "left_out": scorers.left_out,
    }
    samples = Samples("study", list(references.ids), list(references.patients), table, statistics)
    return ReportScores(samples, said, details, _worst(table))


def word_figures(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU, ROUGE-L and CIDEr alone, by their names in a result file."""
    scores = bleu(written, references)
    scores |= {"rouge_l": float(rouge_l_each(written, references).mean())}
    scores |= {"cider": float(cider_each(written, references).mean())}
    return {f"reports.{name}": value for name, value in scores.items()}


def finding_figures(said: Sequence[Labels], truth: Sequence[Labels]) -> dict[str, float]:
    """Clinical F1, micro and macro, in all variants, by their names in a result file."""
    metrics: dict[str, float] = {}
    for ending, findings, uncertain in VARIANTS:
        scores = clinical_f1(said, truth, findings, uncertain)
        metrics[f"reports.clinical_f1_micro{ending}"] = scores["micro"]
        metrics[f"reports.clinical_f1_macro{ending}"] = scores["macro"]
    return metrics


def _add_findings(
    table: dict[str, np.ndarray],
    statistics: dict[str, Statistic],
    figure: str,
    said: Sequence[Labels],
    truth: Sequence[Labels],
) -> None:
    """Columns and figures of one labeller, in all variants."""
    for ending, findings, uncertain in VARIANTS:
        names = tuple(f"{figure}{ending}_{part}" for part in ("hits", "said", "true"))
        table |= dict(zip(names, f1_counts(said, truth, findings, uncertain), strict=True))
        statistics[f"reports.{figure}_micro{ending}"] = Statistic("f1_micro", names)
        statistics[f"reports.{figure}_macro{ending}"] = Statistic("f1_macro", names)


def _worst(table: dict[str, np.ndarray]) -> list[int]:
    """Studies of the lowest F1 over their own findings; among equals, of the fewest words in common."""
    hits, said, true = (table[f"clinical_f1_{part}"].sum(axis=1) for part in ("hits", "said", "true"))
    own = np.where(said + true > 0, 2 * hits / np.maximum(said + true, 1), 1.0)
    return [int(i) for i in np.lexsort((table["rouge_l"], own))[:FAILURES] if own[i] < 1]


def present(labels: Labels) -> list[str]:
    """Findings stated or suspected, in the table's order."""
    return [name for name in OBSERVATIONS if labels.get(name) in (1, -1)]
