"""Collate samples of token shards into batches of studies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medunifier.data.shards.dataset import Sample
from medunifier.shared.artifacts import key64
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.processing.report_codec import ReportCodec, normalise_report, pad_reports
from medunifier.stage2_unified.model.processing.statements import Statement, StatementSampler
from medunifier.stage2_unified.model.processing.view_selection import choose_prior_view, choose_views
from medunifier.stage2_unified.model.sequences import ImageSpans, on_device
from medunifier.stage2_unified.model.vocabulary import PAD


@dataclass
class StatementBatch:
    """The statements of B studies, n each, of F findings.

    Attributes:
        labels: (B, F) int8 of the images: 1, 0 or -1 = unknown.
        ids, length: (B, n, W), (B, n) ids of the statements, padded on the right to one width.
        stated: (B, n, F) int8 labels of the statements; -1 = not stated, which all are in padding.
        general: (B, n) bool, whether the labels are all that a statement states.
        has_report: (B,) bool, False where statements take the place of the report of a study without text.
    """

    labels: Tensor
    ids: Tensor
    length: Tensor
    stated: Tensor
    general: Tensor
    has_report: Tensor

    def each(self, function: Callable[[Tensor], Tensor]) -> "StatementBatch":
        """Return a batch of ``function`` of every tensor."""
        return StatementBatch(**{f.name: function(getattr(self, f.name)) for f in fields(self)})


@dataclass
class StudyBatch:
    """B studies as tensors.

    Attributes:
        images: image spans of the studies.
        report: (B, T) ids of the reports with their section tokens, padded on the right.
        report_length: (B,) ids of each without the padding.
        report_key, patient_key: (B,) integers, equal for equal normalised reports, and for one patient.
        drop_text: (B,) bool, the image is learned without its text (classifier-free guidance).
        negative_seed: seed of the sampled negatives, the same on all processes.
        statements: of the studies; None = a training without statements.
    """

    images: ImageSpans
    report: Tensor
    report_length: Tensor
    report_key: Tensor
    patient_key: Tensor
    drop_text: Tensor
    negative_seed: int = 0
    statements: StatementBatch | None = None

    def __len__(self) -> int:
        return len(self.report)

    def to(self, device: torch.device) -> "StudyBatch":
        """Return the batch on another device; from pinned memory to a GPU without waiting for the copy."""
        tensors: dict[str, Any] = {name: on_device(value, device) for name, value in self._tensors().items()}
        statements = self.statements and self.statements.each(lambda value: on_device(value, device))
        return replace(self, **tensors, images=self.images.to(device), statements=statements)

    def pin_memory(self) -> "StudyBatch":
        """Return the batch in page-locked memory; the loader calls it where there is a GPU."""
        tensors: dict[str, Any] = {name: value.pin_memory() for name, value in self._tensors().items()}
        statements = self.statements and self.statements.each(Tensor.pin_memory)
        return replace(self, **tensors, images=self.images.pin_memory(), statements=statements)

    @property
    def has_report(self) -> Tensor:
        """(B,) bool, False where there is no report to be learned."""
        return torch.ones_like(self.drop_text) if self.statements is None else self.statements.has_report

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}


BUCKETS = 3
"""Widths that the reports of a training are padded to. Each costs two graphs to compile: one for each pass."""
MEASURED_REPORTS = 400
"""Reports whose lengths the buckets are chosen from."""
_MULTIPLE = 8  # of the widths: matrix products of other sizes are slower on a GPU


def report_buckets(lengths: Sequence[int], studies: int, longest: int) -> tuple[int, ...]:
    """Return at most ``BUCKETS`` ascending widths, the last one ``longest``, that pad batches of reports least.

    A batch is as wide as its longest report, so that most batches of many studies have nearly one width: if a
    fraction F of the reports fits into a width, so does a fraction F^B of the batches of B.

    Args:
        lengths: ids of some reports of the training set.
        studies: B of a batch.
        longest: bound on the ids of a report.
    """
    ordered = np.sort(lengths)
    widths = [*range(_MULTIPLE, longest, _MULTIPLE), longest]
    fitting = {width: (np.searchsorted(ordered, width, side="right") / len(ordered)) ** studies for width in widths}

    def mean_width(chosen: tuple[int, ...]) -> float:
        fractions = [fitting[width] for width in chosen[:-1]] + [1.0]
        return float(np.dot(np.diff(fractions, prepend=0.0), chosen))

    smaller = combinations(widths[:-1], min(BUCKETS, len(widths)) - 1)
    return min(((*chosen, longest) for chosen in smaller), key=mean_width)


class StudyCollator:
    """Collate samples of token shards into a :class:`StudyBatch`, each with its ``prior`` where it has one.

    Args:
        codec: of the reports.
        text_dropout: fraction of the studies whose image is learned without text.
        seed: random choices for a sample depend on it and the sample's position alone.
        training: choose views and dropouts at random; otherwise the first frontal view and all texts.
        section_dropout: fraction of the reports with several sections that are reduced to one of them.
        max_views: images of a study at most.
        view_dropout: fraction of the studies with several images that are reduced to one.
        buckets: ascending widths that reports are padded to (:func:`report_buckets`). Images are then padded to
            ``max_views``, so that a training has as many shapes as buckets.
        prior: with ``buckets``, whether there is room for an image of the prior study in every batch.
        statements: number of statements a study; 0 = none.
        statement_tokens: width that they are padded to.
    """

    def __init__(
        self,
        codec: ReportCodec,
        text_dropout: float = 0.0,
        seed: int = 0,
        training: bool = False,
        section_dropout: float = 0.0,
        max_views: int = 1,
        view_dropout: float = 0.0,
        buckets: Sequence[int] = (),
        prior: bool = False,
        statements: int = 0,
        statement_tokens: int = 32,
    ) -> None:
        self.codec, self.text_dropout, self.seed, self.training = codec, text_dropout, seed, training
        self.section_dropout, self.max_views, self.view_dropout = section_dropout, max_views, view_dropout
        self.buckets, self.prior = buckets, prior
        self._statements = StatementSampler(codec, statements, statement_tokens) if statements else None

    def __call__(self, samples: Sequence[tuple[int, Sample]]) -> StudyBatch:
        studies: list[dict[str, Any]] = [self._study(position, sample) for position, sample in samples]
        reports, static = [study["report"] for study in studies], bool(self.buckets)
        report, length = pad_reports(reports, self.codec.vocabulary[PAD], self.buckets)
        codes, view = self._padded([study["images"] for study in studies], self.max_views if static else 1)
        priors = [study["prior"] for study in studies]
        has_prior = self.prior if static else any(len(view) for _, view in priors)
        prior_codes, prior_view = self._padded(priors, 1) if has_prior else (None, None)
        return StudyBatch(
            images=ImageSpans(codes, view, prior_codes, prior_view),
            report=report,
            report_length=length,
            report_key=torch.tensor([study["report_key"] for study in studies]),
            patient_key=torch.tensor([study["patient_key"] for study in studies]),
            drop_text=torch.tensor([study["drop_text"] for study in studies]),
            statements=self._statement_batch(studies) if self._statements else None,
        )

    def _statement_batch(self, studies: Sequence[Mapping[str, Any]]) -> StatementBatch:
        assert self._statements is not None  # noqa: S101 - narrows a type
        statements: list[Statement] = [statement for study in studies for statement in study["statements"]]
        shape = (len(studies), self._statements.count)
        ids, length = pad_reports([s.ids for s in statements], self.codec.vocabulary[PAD], [self._statements.width])
        return StatementBatch(
            labels=torch.tensor([study["labels"] for study in studies], dtype=torch.int8),
            ids=ids.unflatten(0, shape),
            length=length.unflatten(0, shape),
            stated=torch.tensor([s.labels for s in statements], dtype=torch.int8).unflatten(0, shape),
            general=torch.tensor([s.general for s in statements]).unflatten(0, shape),
            has_report=torch.tensor([study["has_report"] for study in studies]),
        )

    def _padded(self, images: Sequence[tuple[np.ndarray, list[int]]], least: int) -> tuple[Tensor, Tensor]:
        """Return (S, N) codes and S view ids of each study as (B, S, N) and (B, S), padded to ``least`` or more."""
        count = max(least, *(len(view) for _, view in images))
        codes = torch.zeros(len(images), count, images[0][0].shape[-1], dtype=torch.long)
        view = torch.full((len(images), count), self.codec.vocabulary[PAD])
        for study, (numbers, names) in enumerate(images):
            codes[study, : len(names)], view[study, : len(names)] = (
                torch.from_numpy(numbers),
                torch.tensor(names).long(),
            )
        return codes, view

    def _images(self, sample: Sample, numbers: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """Return (S, N) codes and S view ids of the images with these numbers."""
        if sample.codes is None:
            raise UserError("the shards hold images, not codes: run `medunifier tokenize` on them first")
        codes = sample.codes[list(numbers)].reshape(len(numbers), sample.codes[0].size).astype(np.int64)
        return codes, [self.codec.vocabulary.view(sample.info["views"][number]) for number in numbers]

    def _study(self, position: int, sample: Sample) -> dict[str, Any]:
        generator = np.random.default_rng((self.seed, position)) if self.training else None
        views = sample.info["views"]
        numbers = choose_views(views, self.max_views, generator, self.view_dropout)
        images, prior = self._images(sample, numbers), self._images(sample, [])
        if sample.prior is not None:
            number = choose_prior_view(sample.prior.info["views"], like=views[numbers[0]])
            prior = self._images(sample.prior, [number])
        report = sample.info["report"]
        text = " ".join(report.get(section, "") for section in self.codec.sections)
        drop_text = generator is not None and bool(generator.random() < self.text_dropout)
        if generator is not None and generator.random() < self.section_dropout:
            present = [section for section in self.codec.sections if report.get(section, "").strip()]
            report = {section: report[section] for section in present[int(generator.integers(len(present))) :][:1]}
        of_statements: dict[str, Any] = {}
        if self._statements:
            # A generator of its own, so that the choices above do not depend on the statements.
            own = np.random.default_rng((self.seed, position, 1))
            of_statements["labels"] = self._statements.labels(sample.info)
            of_statements["statements"] = self._statements.sample(sample.info, own)
            of_statements["has_report"] = bool(text.strip())
            if not text.strip():
                report = self._statements.as_report(sample.info, own)
        return of_statements | {
            "images": images,
            "prior": prior,
            "report": self.codec.encode(report),
            # Of all sections: section dropout must not change which studies count as positives of each other.
            "report_key": key64(normalise_report(text)),
            "patient_key": key64(sample.info["patient_id"]),
            "drop_text": drop_text,
        }
