"""Retrieval between radiographs and reports, and the matching head on right and wrong pairs."""

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


def evaluate_retrieval(judging: EvaluationContext) -> TaskResult:
    """R@1/5/10 both ways among the drawn studies, one frontal image each, identical reports as one candidate.

    P@5/10/100 among the studies that state exactly one finding of the label set (``all`` stands for the
    five of CheXpert 5x200). With ``rerank`` K the matching head puts the first K candidates of every query
    in its order. Matching: each image with its own report and with one drawn report of another text; AUROC
    of the head's probability over both kinds of pair.

    Raises:
        UserError: if the draw has a single distinct report, so that nothing can be told apart.
    """
    data, split, pipeline = judging.data, judging.split, judging.pipeline
    studies = data.studies(split, judging.limit)
    ids = studies.text_ids
    if len(set(ids.tolist())) < 2:
        raise UserError(f"all {len(studies)} studies judged share one report: retrieval needs at least two texts")
    given = judging.seen(split, studies)
    similarity = pipeline.embed_images(**given.arguments) @ pipeline.embed_texts(studies.reports).T
    findings = findings_of("chexpert5" if judging.label_set == "all" else judging.label_set)
    pool = Pool(studies.ids, studies.patients, ids, ids, exclusive_class(studies.labels, findings))

    def match(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        return pipeline.match(**given.of(images).arguments, reports=[studies.reports[j] for j in texts])

    scores = score_retrieval(similarity, pool, judging.rerank, match)
    unlike = draw_unlike(ids, judging.seed)
    each = np.arange(len(studies))
    right, wrong = match(each, each), match(each, unlike)
    matching = Samples(
        "study with its own and with another's report",
        studies.ids,
        studies.patients,
        {"right": right, "wrong": wrong, "decided": np.mean([right > 0.5, wrong <= 0.5], axis=0)},
        {"matching.auroc": Statistic("paired_auroc", ("right", "wrong")), "matching.accuracy": mean_of("decided")},
    )
    metrics = scores.metrics | matching.values()
    metrics |= {"matching.auroc.baseline": 0.5, "matching.accuracy.baseline": 0.5}
    worst = [int(i) for i in np.argsort(-scores.ranks, kind="stable")[:FAILURES] if scores.ranks[i] > 1]
    shown = [*range(min(EXAMPLES, len(studies))), *worst]
    details = scores.details | {
        "matching_pairs": 2 * len(studies),
        "examples": _examples(studies, similarity, scores.ranks, shown[:EXAMPLES]),
        "failures": _examples(studies, similarity, scores.ranks, worst),
    }
    decoded = pipeline.decode(data.codes(split, studies)[shown])
    pictures = {f"retrieval-reconstruction-{i}": image for i, image in zip(shown, decoded, strict=True)}
    samples = scores.samples | {"matching": matching}
    return TaskResult(metrics, details, pictures, studies, samples, pool.protocol())


def draw_unlike(ids: np.ndarray, seed: int) -> np.ndarray:
    """For each study the number of another whose normalised report differs, drawn uniformly."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(ids != own)) for own in ids])


def _examples(
    studies: Studies, similarity: np.ndarray, ranks: np.ndarray, numbers: list[int]
) -> list[dict[str, Any]]:
    """The nearest three reports of some images, for the page."""
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
