"""Zero-shot classification: is the image nearer to "There is edema." or to "There is no edema."?"""

import numpy as np

from data.observations import NO_FINDING, OBSERVATIONS
from shared.metrics.auroc import auroc_per_finding, macro_auroc, macro_auroc_interval, truth_matrix
from stage2_unified.evaluate.result import Judging, TaskResult, interval
from stage2_unified.evaluate.studies import with_both_classes

# A statement and its denial. CheXzero's (Tiu et al., 2022) is a bare name, which a model of few reports may know
# only within a sentence: on the demo's phantoms, whose reports never say "No cardiomegaly.", it ranks upside down.
PROMPTS = {
    "sentence": ("there is {finding}.", "there is no {finding}."),
    "chexzero": ("{finding}.", "no {finding}."),
}


def prompt_pair(finding: str, style: str) -> tuple[str, str]:
    """The statement and its denial in a report's spelling: "There is edema.", "There is no edema."."""
    positive, negative = (template.format(finding=finding.lower()) for template in PROMPTS[style])
    return positive[0].upper() + positive[1:], negative[0].upper() + negative[1:]


def judge_zero_shot(judging: Judging) -> TaskResult:
    """AUROC per finding of the difference of the two similarities, and their mean.

    Softmax over the pair is monotone in that difference, so the AUROC is the same. Uncertain labels do not
    count; "No Finding" has no denial and is left out.
    """
    data, split = judging.data, judging.split
    studies = data.studies(split, judging.limit, with_text=False)
    candidates = [name for name in OBSERVATIONS if name != NO_FINDING]
    truth = truth_matrix(studies.labels, candidates)
    columns = with_both_classes(truth, candidates)
    findings, truth = [candidates[i] for i in columns], truth[:, columns]
    images = judging.pipeline.embed_images(data.codes(split, studies), studies.views)
    pairs = [prompt_pair(finding, judging.prompts) for finding in findings]
    texts = judging.pipeline.embed_texts([{"findings": text, "impression": ""} for pair in pairs for text in pair])
    scores = images @ (texts[0::2] - texts[1::2]).T  # (N, F)
    bounds = macro_auroc_interval(truth, scores, studies.patients, judging.bootstrap, judging.seed)
    return TaskResult(
        metrics={"zero_shot.auroc": macro_auroc(truth, scores), "zero_shot.auroc.baseline": 0.5},
        details={
            "per_finding": auroc_per_finding(truth, scores, findings),
            "positives": dict(zip(findings, np.nansum(truth, axis=0).astype(int).tolist(), strict=True)),
            "prompt_style": judging.prompts,
            "prompts": dict(zip(findings, map(list, pairs), strict=True)),
            "intervals": {"zero_shot.auroc": interval(bounds)},
        },
        studies=studies,
    )
