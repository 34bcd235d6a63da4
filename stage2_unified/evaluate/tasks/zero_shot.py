"""Zero-shot classification: is the image nearer to "There is edema." or to "There is no edema."?"""

from typing import Any

import numpy as np

from medunifier.shared.metrics.auroc import auroc_per_finding, truth_matrix
from medunifier.shared.metrics.roc import roc_per_finding
from medunifier.shared.metrics.samples import Samples, Statistic, mean_of
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult
from medunifier.stage2_unified.evaluate.subsets.studies import with_both_classes
from medunifier.stage2_unified.inference.prompts import PromptSet, findings_of, prompt_set


def evaluate_zero_shot(judging: EvaluationContext) -> TaskResult:
    """AUROC of each finding's score, their mean, and what a decision by it is worth.

    The score is the similarity to the statements less that to the denials; softmax over the pair is
    monotone in it, so the AUROC is CheXzero's. ``zero_shot.f1_macro`` and ``zero_shot.accuracy`` decide at
    0, where both are equally near (CheXzero tunes a threshold on validation studies; none is tuned here);
    a set without denials has neither. ``zero_shot.accuracy_exclusive`` is that of CheXpert 5x200: among
    studies with exactly one of the findings, whether its score is the highest, each finding's scores
    brought to mean 0 and deviation 1 over these studies, as GLoRIA does. Uncertain labels do not count.
    """
    data, split = judging.data, judging.split
    studies = data.studies(split, judging.limit, with_text=False)
    prompts = prompt_set(judging.prompts, findings_of(judging.label_set))
    candidates = list(prompts.prompts)
    truth = truth_matrix(studies.labels, candidates)
    columns = with_both_classes(truth, candidates)
    findings, truth = [candidates[i] for i in columns], truth[:, columns]
    images = judging.pipeline.embed_images(**judging.seen(split, studies).arguments)
    scores, paired = _scores(judging, images, prompts, findings)

    table: dict[str, np.ndarray] = {"truth": truth, "score": scores}
    statistics = {"zero_shot.auroc": Statistic("macro_auroc", ("truth", "score"))}
    metrics = {"zero_shot.auroc.baseline": 0.5}
    known = np.isfinite(truth)
    if paired:
        said, true = (scores > 0) & known, (truth == 1) & known
        table |= {"hits": said & true, "said": said, "true": true}
        table["right"] = np.where(known, (scores > 0) == (truth == 1), np.nan)
        statistics |= {
            "zero_shot.f1_macro": Statistic("f1_macro", ("hits", "said", "true")),
            "zero_shot.accuracy": mean_of("right"),
        }
        share = np.nanmean(truth, axis=0)
        metrics |= {
            "zero_shot.f1_macro.baseline": float((2 * share / (1 + share)).mean()),  # to say yes to all
            "zero_shot.accuracy.baseline": float(np.maximum(share, 1 - share).mean()),
        }
    single = _exclusive(truth)
    if len(np.unique(np.argmax(truth[single], axis=1))) > 1:
        own = np.argmax(np.nan_to_num(truth[single]), axis=1)
        level = (scores[single] - scores[single].mean(axis=0)) / (scores[single].std(axis=0) + 1e-12)
        right = np.full(len(studies), np.nan)
        right[single] = level.argmax(axis=1) == own
        table["exclusive"] = right
        statistics["zero_shot.accuracy_exclusive"] = mean_of("exclusive")
        metrics["zero_shot.accuracy_exclusive.baseline"] = float(np.bincount(own).max() / len(own))
    samples = Samples("study", studies.ids, studies.patients, table, statistics)
    details: dict[str, Any] = {
        "per_finding": auroc_per_finding(truth, scores, findings),
        "roc": roc_per_finding(truth, scores, findings),
        "positives": dict(zip(findings, np.nansum(truth, axis=0).astype(int).tolist(), strict=True)),
        "exclusive_studies": int(single.sum()),
        "prompt_style": prompts.name,
        "prompts": prompts.to_json(),
    }
    protocol = {"findings": findings, "labels": studies.labels_digest}
    return TaskResult(samples.values() | metrics, details, {}, studies, {"zero-shot": samples}, protocol)


def _scores(
    judging: EvaluationContext, images: np.ndarray, prompts: PromptSet, findings: list[str]
) -> tuple[np.ndarray, bool]:
    """(N, F) scores of unit-norm image embeddings, and whether every finding has denials."""
    sides = [prompts.prompts[finding] for finding in findings]
    sentences = [sentence for side in sides for part in side for sentence in part]
    # The model's own, not the data's: it would read a sentence in another section as no text at all.
    section = judging.pipeline.sections.split("+")[0]
    empty = {"findings": "", "impression": ""}
    embedded = iter(judging.pipeline.embed_texts([empty | {section: sentence} for sentence in sentences]))

    def similarity(part: tuple[str, ...]) -> np.ndarray:
        texts = np.stack([next(embedded) for _ in part])  # (P, E)
        if prompts.combine == "max":
            return (images @ texts.T).max(axis=1)
        mean = texts.mean(axis=0)
        return images @ (mean / max(float(np.linalg.norm(mean)), 1e-12))

    columns = []
    for positive, negative in sides:
        score = similarity(positive)
        columns.append(score - similarity(negative) if negative else score)
    return np.stack(columns, axis=1), all(negative for _, negative in sides)


def _exclusive(truth: np.ndarray) -> np.ndarray:
    """(N,) studies in which one finding is present and no other is present or uncertain."""
    return (np.nansum(truth, axis=1) == 1) & np.isfinite(truth).all(axis=1)
