"""Zero-shot classification: compare an image with prompts such as "There is edema." and "There is no edema."."""

from typing import Any

import numpy as np

from medunifier.shared.metrics.auroc import auroc_per_finding, truth_matrix
from medunifier.shared.metrics.roc import roc_per_finding
from medunifier.shared.metrics.samples import Samples, Statistic, mean_of
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult
from medunifier.stage2_unified.evaluate.subsets.studies import with_both_classes
from medunifier.stage2_unified.evaluate.tasks.pointing import add_pointing_game
from medunifier.stage2_unified.inference.prompts import PromptSet, findings_of, prompt_set


def evaluate_zero_shot(context: EvaluationContext) -> TaskResult:
    """Return AUROC, F1 and accuracy of the prompt scores.

    The score is the similarity to the positive prompts minus that to the negative prompts; the softmax over the pair
    is monotone in it, so the AUROC equals CheXzero's. ``zero_shot.f1_macro`` and ``zero_shot.accuracy`` use the
    threshold 0, where both similarities are equal (CheXzero tunes a threshold on validation studies; none is tuned
    here); a prompt set without negative prompts has neither. ``zero_shot.accuracy_exclusive`` follows CheXpert
    5x200: among studies with exactly one of the findings, whether its score is the highest, after each finding's
    scores are standardised over these studies, as in GLoRIA. Uncertain labels are ignored.

    The published protocol is the contrast's. A model that was trained with statements also matches the prompts:
    ``zero_shot.matching_auroc`` is the AUROC of the probability of the positive prompts minus that of the negative
    ones, ``zero_shot.match_agreed`` and ``zero_shot.match_contradicted`` are the median probabilities of the prompts
    that are true and that are false of an image. Data with masks also have ``zero_shot.pointing``.
    """
    data, split = context.data, context.split
    studies = data.studies(split, context.limit, with_text=False)
    prompts = prompt_set(context.prompts, findings_of(context.label_set))
    candidates = list(prompts.prompts)
    truth = truth_matrix(studies.labels, candidates)
    columns = with_both_classes(truth, candidates)
    findings, truth = [candidates[i] for i in columns], truth[:, columns]
    inputs = context.model_inputs(split, studies).arguments
    images = context.pipeline.embed_images(**inputs)
    scores, paired = _scores(context, images, prompts, findings)

    table: dict[str, np.ndarray] = {"truth": truth, "score": scores}
    statistics = {"zero_shot.auroc": Statistic("macro_auroc", ("truth", "score"))}
    metrics = {"zero_shot.auroc.baseline": 0.5}
    known = np.isfinite(truth)
    if paired:
        predicted, true = (scores > 0) & known, (truth == 1) & known
        table |= {"hits": predicted & true, "predicted": predicted, "true": true}
        table["right"] = np.where(known, (scores > 0) == (truth == 1), np.nan)
        statistics |= {
            "zero_shot.f1_macro": Statistic("f1_macro", ("hits", "predicted", "true")),
            "zero_shot.accuracy": mean_of("right"),
        }
        prevalence = np.nanmean(truth, axis=0)
        metrics |= {
            "zero_shot.f1_macro.baseline": float((2 * prevalence / (1 + prevalence)).mean()),  # always positive
            "zero_shot.accuracy.baseline": float(np.maximum(prevalence, 1 - prevalence).mean()),
        }
    if paired and getattr(context.pipeline, "statements", False):
        stated, denied = _matched(context, inputs, prompts, findings)
        table["match_score"] = stated - denied
        table["agreed"] = np.where(known, np.where(truth == 1, stated, denied), np.nan)
        table["contradicted"] = np.where(known, np.where(truth == 1, denied, stated), np.nan)
        statistics |= {
            "zero_shot.matching_auroc": Statistic("macro_auroc", ("truth", "match_score")),
            "zero_shot.match_agreed": Statistic("median", ("agreed",)),
            "zero_shot.match_contradicted": Statistic("median", ("contradicted",)),
        }
        metrics["zero_shot.matching_auroc.baseline"] = 0.5
    single = _exclusive(truth)
    if len(np.unique(np.argmax(truth[single], axis=1))) > 1:
        classes = np.argmax(np.nan_to_num(truth[single]), axis=1)
        standardised = (scores[single] - scores[single].mean(axis=0)) / (scores[single].std(axis=0) + 1e-12)
        correct = np.full(len(studies), np.nan)
        correct[single] = standardised.argmax(axis=1) == classes
        table["exclusive"] = correct
        statistics["zero_shot.accuracy_exclusive"] = mean_of("exclusive")
        metrics["zero_shot.accuracy_exclusive.baseline"] = float(np.bincount(classes).max() / len(classes))
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
    result = TaskResult(samples.values() | metrics, details, {}, studies, {"zero-shot": samples}, protocol)
    add_pointing_game(context, studies, prompts, findings, result)
    return result


def _scores(
    context: EvaluationContext, images: np.ndarray, prompts: PromptSet, findings: list[str]
) -> tuple[np.ndarray, bool]:
    """Return the (N, F) scores of unit-norm image embeddings, and whether every finding has negative prompts."""
    pairs = [prompts.prompts[finding] for finding in findings]  # (positive prompts, negative prompts)
    embedded = iter(context.pipeline.embed_texts(_reports(context, prompts, findings)))

    def similarity(group: tuple[str, ...]) -> np.ndarray:
        texts = np.stack([next(embedded) for _ in group])  # (P, E)
        if prompts.combine == "max":
            return (images @ texts.T).max(axis=1)
        mean = texts.mean(axis=0)
        return images @ (mean / max(float(np.linalg.norm(mean)), 1e-12))

    columns = []
    for positive, negative in pairs:
        score = similarity(positive)
        columns.append(score - similarity(negative) if negative else score)
    return np.stack(columns, axis=1), all(negative for _, negative in pairs)


def _reports(context: EvaluationContext, prompts: PromptSet, findings: list[str]) -> list[dict[str, str]]:
    """Return every sentence as a report: of each finding the positive, then the negative ones."""
    # A section that the model was trained on: it ignores the text of other sections.
    section = context.pipeline.sections.split("+")[0]
    empty = {"findings": "", "impression": ""}
    sides = [side for finding in findings for side in prompts.prompts[finding]]
    return [empty | {section: sentence} for side in sides for sentence in side]


def _matched(
    context: EvaluationContext, inputs: dict[str, Any], prompts: PromptSet, findings: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, F) mean matching probabilities of the positive and of the negative prompts."""
    probabilities = context.pipeline.match_all(**inputs, reports=_reports(context, prompts, findings))  # (N, P)
    sizes = [len(side) for finding in findings for side in prompts.prompts[finding]]
    sides = [part.mean(axis=1) for part in np.split(probabilities, np.cumsum(sizes)[:-1], axis=1)]
    return np.stack(sides[::2], axis=1), np.stack(sides[1::2], axis=1)


def _exclusive(truth: np.ndarray) -> np.ndarray:
    """Return (N,) booleans: one finding is present and no other is present or uncertain."""
    return (np.nansum(truth, axis=1) == 1) & np.isfinite(truth).all(axis=1)
