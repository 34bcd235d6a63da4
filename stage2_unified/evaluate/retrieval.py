"""Retrieval between radiographs and reports, and the matching head on right and wrong pairs."""

import numpy as np

from shared.errors import UserError
from shared.metrics.auroc import auroc
from shared.metrics.bootstrap import bootstrap_interval
from shared.metrics.retrieval import first_relevant_rank, recall_at_k
from stage2_unified.evaluate.result import Judging, TaskResult, interval

EXAMPLES = 6


def judge_retrieval(judging: Judging) -> TaskResult:
    """R@1/5/10 both ways among the drawn studies, one frontal image each, identical reports as one candidate.

    Matching: each image with its own report and with one drawn report of another text; AUROC of the head's
    probability over both kinds of pair.

    Raises:
        UserError: if the draw has a single distinct report, so that nothing can be told apart.
    """
    data, split = judging.data, judging.split
    studies = data.studies(split, judging.limit)
    ids = studies.text_ids
    if len(set(ids.tolist())) < 2:
        raise UserError(f"all {len(studies)} studies judged share one report: retrieval needs at least two texts")
    codes = data.codes(split, studies)
    similarity = judging.pipeline.embed_images(codes, studies.views) @ judging.pipeline.embed_texts(studies.reports).T
    metrics = {f"retrieval.{name}": value for name, value in recall_at_k(similarity, ids, ids).items()}

    unlike = draw_unlike(ids, judging.seed)
    right = judging.pipeline.match(codes, studies.views, studies.reports)
    wrong = judging.pipeline.match(codes, studies.views, [studies.reports[j] for j in unlike])
    truth, scores = np.repeat([1.0, 0.0], len(studies)), np.concatenate([right, wrong])
    metrics |= {"matching.auroc": auroc(truth, scores), "matching.auroc.baseline": 0.5}
    metrics |= {
        "matching.accuracy": float(((scores > 0.5) == (truth == 1)).mean()),
        "matching.accuracy.baseline": 0.5,
    }

    relevant = ids[:, None] == ids[None, :]
    hit = first_relevant_rank(*_distinct(similarity, relevant, ids)) <= 10

    def matching(rows: np.ndarray) -> float:
        pairs = np.concatenate([rows, rows + len(studies)])
        return auroc(truth[pairs], scores[pairs])

    draws = judging.bootstrap
    details = {
        "distinct_reports": len(set(ids.tolist())),
        "pool": len(studies),
        "intervals": {
            "retrieval.image_to_text_r10": interval(
                bootstrap_interval(lambda rows: hit[rows].mean(), studies.patients, draws, seed=judging.seed)
            ),
            "matching.auroc": interval(bootstrap_interval(matching, studies.patients, draws, seed=judging.seed)),
        },
        "matching_pairs": len(scores),
        "examples": [],
    }
    return TaskResult(metrics, details, _examples(judging, similarity, details), studies)


def draw_unlike(ids: np.ndarray, seed: int) -> np.ndarray:
    """For each study the number of another whose normalised report differs, drawn uniformly."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(ids != own)) for own in ids])


def _distinct(similarity: np.ndarray, relevant: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the first study with each text."""
    columns = np.unique(ids, return_index=True)[1]
    return similarity[:, columns], relevant[:, columns]


def _examples(judging: Judging, similarity: np.ndarray, details: dict) -> dict[str, np.ndarray]:
    """The nearest three reports of the first few images, for the page."""
    data, split = judging.data, judging.split
    studies = data.studies(split, judging.limit)
    columns = np.unique(studies.text_ids, return_index=True)[1]
    pictures = {}
    shown = judging.pipeline.decode(data.codes(split, studies)[:EXAMPLES])
    for i in range(min(EXAMPLES, len(studies))):
        nearest = columns[np.argsort(-similarity[i, columns], kind="stable")[:3]]
        pictures[f"retrieval-reconstruction-{i}"] = shown[i]
        details["examples"].append(
            {
                "picture": f"retrieval-reconstruction-{i}",
                "truth": studies.texts[i],
                "nearest": [studies.texts[j] for j in nearest],
                "right": [bool(studies.text_ids[j] == studies.text_ids[i]) for j in nearest],
            }
        )
    return pictures
