"""Image-text retrieval, and image-text matching on true and false pairs."""

from typing import Any

import numpy as np

from medunifier.shared.errors import UserError
from medunifier.shared.metrics.samples import Samples, Statistic, mean_of
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult
from medunifier.stage2_unified.evaluate.scores.retrieval import Pool, exclusive_class, score_retrieval
from medunifier.stage2_unified.evaluate.subsets.studies import Studies
from medunifier.stage2_unified.inference.prompts import findings_of

EXAMPLES = 6
FAILURES = 4


def evaluate_retrieval(context: EvaluationContext) -> TaskResult:
    """Return R@1/5/10 in both directions, with one frontal image per study and identical reports as one candidate.

    P@5/10/100 is taken among the studies with exactly one finding of the label set (``all`` stands for the five of
    CheXpert 5x200). With ``rerank`` K the matching head reorders the first K candidates of every query. Matching:
    AUROC of the head's probability over pairs of each image with its report and with a different sampled report.

    Raises:
        UserError: if all studies have the same report.
    """
    data, split, pipeline = context.data, context.split, context.pipeline
    studies = data.studies(split, context.limit)
    ids = studies.text_ids
    if len(set(ids.tolist())) < 2:
        raise UserError(f"all {len(studies)} studies share one report: retrieval needs two distinct reports")
    inputs = context.model_inputs(split, studies)
    similarity = pipeline.embed_images(**inputs.arguments) @ pipeline.embed_texts(studies.reports).T
    findings = findings_of("chexpert5" if context.label_set == "all" else context.label_set)
    pool = Pool(studies.ids, studies.patients, ids, ids, exclusive_class(studies.labels, findings))

    def match(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        return pipeline.match(**inputs.select(images).arguments, reports=[studies.reports[j] for j in texts])

    scores = score_retrieval(similarity, pool, context.rerank, match)
    negatives = sample_negatives(ids, context.seed)
    every = np.arange(len(studies))
    right, wrong = match(every, every), match(every, negatives)
    matching = Samples(
        "study with its report and with a different report",
        studies.ids,
        studies.patients,
        {"right": right, "wrong": wrong, "decided": np.mean([right > 0.5, wrong <= 0.5], axis=0)},
        {"matching.auroc": Statistic("paired_auroc", ("right", "wrong")), "matching.accuracy": mean_of("decided")},
    )
    metrics = scores.metrics | matching.values()
    metrics |= {"matching.auroc.baseline": 0.5, "matching.accuracy.baseline": 0.5}
    worst = [int(i) for i in np.argsort(-scores.ranks, kind="stable")[:FAILURES] if scores.ranks[i] > 1]
    pictured = [*range(min(EXAMPLES, len(studies))), *worst]
    details = scores.details | {
        "matching_pairs": 2 * len(studies),
        "examples": _examples(studies, similarity, scores.ranks, pictured[:EXAMPLES]),
        "failures": _examples(studies, similarity, scores.ranks, worst),
    }
    decoded = pipeline.decode(data.codes(split, studies)[pictured])
    pictures = {f"retrieval-reconstruction-{i}": image for i, image in zip(pictured, decoded, strict=True)}
    samples = scores.samples | {"matching": matching}
    return TaskResult(metrics, details, pictures, studies, samples, pool.protocol())


def sample_negatives(ids: np.ndarray, seed: int) -> np.ndarray:
    """Sample for each study the number of another study whose normalised report differs, uniformly."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(ids != text_id)) for text_id in ids])


def _examples(
    studies: Studies, similarity: np.ndarray, ranks: np.ndarray, numbers: list[int]
) -> list[dict[str, Any]]:
    """Return the three most similar reports of the images ``numbers``, for the page."""
    columns = np.unique(studies.text_ids, return_index=True)[1]
    rows = []
    for i in numbers:
        nearest = columns[np.argsort(-similarity[i, columns], kind="stable")[:3]]
        rows.append(
            {
                "picture": f"retrieval-reconstruction-{i}",
                "study": studies.ids[i],
                "rank": int(ranks[i]),
                "truth": studies.texts[i],
                "nearest": [studies.texts[j] for j in nearest],
                "right": [bool(studies.text_ids[j] == studies.text_ids[i]) for j in nearest],
            }
        )
    return rows
