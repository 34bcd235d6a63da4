"""Batches of images with what their studies state: labels and reports, for the semantic terms."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import NEGATIVE, NO_FINDING, OBSERVATIONS, POSITIVE, SUPPORT_DEVICES
from medunifier.data.shards.dataset import Sample, ShardDataset
from medunifier.data.shards.loader import epoch_order
from medunifier.shared.artifacts import key64
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.config import SemanticConfig
from medunifier.stage1_tokenizer.losses.semantic.objectives import LabelBalance
from medunifier.stage1_tokenizer.pixel_range import collate_images, stack_images

MEASURED_STUDIES = 4000
"""Training studies whose labels the balance is measured on."""
LEAST_CASES = 5
"""Fewest present and absent cases among them of a finding that is learned."""
MAX_WEIGHT = 20.0
"""Bound on the weight of a present case: a rare finding must not dominate the batch that it is in."""
WORDS = 128
"""Words of a report that are embedded; further words are ignored."""

_WORD = re.compile(r"[a-z]+|\d+")


class StudyImages(NamedTuple):
    """B images, one a study, with what the semantic terms learn. A field that no term needs is None.

    Attributes:
        images: (B, 1, S, S) in [-1, 1].
        labels: (B, 14) 1, 0, or NaN where unknown.
        words: (B, WORDS) word hashes of the reports, padded with 0.
        report_key, patient_key: (B,) integers, equal for equal reports and for one patient.
    """

    images: Tensor
    labels: Tensor | None = None
    words: Tensor | None = None
    report_key: Tensor | None = None
    patient_key: Tensor | None = None


def collate_studies(
    samples: Sequence[tuple[int, Sample]], size: int, seed: int, config: SemanticConfig
) -> StudyImages:
    """Collate the images that :func:`collate_images` samples, with the fields that ``config`` needs."""
    infos = [sample.info for _, sample in samples]
    return _with_statements(collate_images(samples, size, seed), infos, config)


def stack_studies(samples: Sequence[tuple[int, Sample]], size: int, config: SemanticConfig) -> StudyImages:
    """Collate all images of all studies, in order, with the fields that ``config`` needs."""
    infos = [sample.info for _, sample in samples for _ in sample.images]
    return _with_statements(stack_images(samples, size), infos, config)


def _with_statements(images: Tensor, infos: Sequence[Mapping[str, Any]], config: SemanticConfig) -> StudyImages:
    batch = StudyImages(images)
    if config.labels:
        batch = batch._replace(labels=_label_rows(infos, config))
    if config.report.weight:
        texts = [_words(info.get("report", {}).get("text", "")) for info in infos]
        batch = batch._replace(
            words=torch.tensor([_hashes(words) for words in texts]),
            report_key=torch.tensor([key64(" ".join(words)) for words in texts]),
            # Without a patient, a study is a patient of its own.
            patient_key=torch.tensor([key64(info.get("patient_id") or info["study_id"]) for info in infos]),
        )
    return batch


def label_row(info: Mapping[str, Any], unmentioned: str) -> list[float]:
    """Return the 14 labels of a study: 1, 0, or NaN where unknown.

    Args:
        info: the study's ``json``. Without labels of its own the report is labeled; without either nothing is known.
        unmentioned: "absent" or "unknown": an observation without a label. After ``No Finding`` it is absent in
            either case, except support devices.
    """
    labels = info.get("labels") or _labels_of(info.get("report", {}).get("text", ""))
    if not labels:
        return [float("nan")] * len(OBSERVATIONS)
    clear = labels.get(NO_FINDING) == POSITIVE

    def value(name: str) -> float:
        if name in labels:
            return {POSITIVE: 1.0, NEGATIVE: 0.0}.get(labels[name], float("nan"))
        known = unmentioned == "absent" or (clear and name != SUPPORT_DEVICES)
        return 0.0 if known else float("nan")

    return [value(name) for name in OBSERVATIONS]


def _label_rows(infos: Sequence[Mapping[str, Any]], config: SemanticConfig) -> Tensor:
    return torch.tensor([label_row(info, config.labels.unmentioned) for info in infos])


def _labels_of(text: str) -> dict[str, int]:
    return label_report(text) if text.strip() else {}


def label_balance(dataset: ShardDataset, config: SemanticConfig, seed: int) -> LabelBalance:
    """Return the weights of the label loss from at most :data:`MEASURED_STUDIES` studies, the same on all processes.

    A finding's weights are 1 / (2 x fraction present) and 1 / (2 x fraction absent) of all studies, the former at
    most :data:`MAX_WEIGHT`, so that in the mean either half is one half of its loss.

    Raises:
        UserError: if no finding has both cases.
    """
    order = epoch_order(len(dataset), seed, 0)[:MEASURED_STUDIES]
    rows = _label_rows([dataset.info(int(number)) for number in order], config)
    cases = torch.stack([(rows == 1).sum(dim=0), (rows == 0).sum(dim=0)])  # (2, F)
    learned = (cases >= LEAST_CASES).all(dim=0)
    if not learned.any():
        raise UserError(
            f"loss.semantic.labels: no finding has {LEAST_CASES} present and {LEAST_CASES} absent cases in "
            f"{len(rows)} training studies of {dataset.root}: ingest labels or reports, or set its weight to 0"
        )
    weights = torch.where(learned, len(rows) / (2 * cases.clamp(min=1)), 0.0)
    return LabelBalance(weights[0].clamp(max=MAX_WEIGHT), weights[1])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _hashes(words: Sequence[str]) -> list[int]:
    """Return :data:`WORDS` positive hashes, padded with 0."""
    hashes = [_word_hash(word) for word in words[:WORDS]]
    return hashes + [0] * (WORDS - len(hashes))


@lru_cache(maxsize=2**16)
def _word_hash(word: str) -> int:
    number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big", signed=True)
    return 1 + number % (2**31 - 1)


def as_batch(batch: StudyImages | Tensor) -> StudyImages:
    """Return a batch of images alone as :class:`StudyImages`."""
    return batch if isinstance(batch, StudyImages) else StudyImages(batch)
