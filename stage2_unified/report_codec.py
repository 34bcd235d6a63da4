"""From studies to the tensors of a batch: which images a row shows, and the report as ids.

A report is ``<findings> words <impression> words``, with the sections that it has. The rows themselves are laid
by :mod:`stage2_unified.rows`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from data.shards import Sample
from shared.errors import UserError
from stage2_unified.rows import Spans
from stage2_unified.vocabulary import SECTIONS, Vocabulary, view_name

_FRONTAL = ("pa", "ap")


@dataclass
class StudyBatch:
    """B studies as tensors.

    Attributes:
        codes: (B, N) image codes in [0, K); (B, S, N) where rows show several images.
        view: (B,) or (B, S) ids of the view tokens; ``<pad>``, behind the others, where a study has fewer images.
        report: (B, T) ids of the reports with their section tokens, padded on the right.
        report_length: (B,) real ids of each.
        report_key, patient_key: (B,) integers, equal for equal normalised reports, and for one patient.
        drop_text: (B,) bool, the image is learned without its text (classifier-free guidance).
        draw_seed: seed of the drawn negatives, the same on all processes.
        prior_codes, prior_view: (B, P, N), (B, P) images of the visit before, likewise; None = nobody has any.
    """

    codes: Tensor
    view: Tensor
    report: Tensor
    report_length: Tensor
    report_key: Tensor
    patient_key: Tensor
    drop_text: Tensor
    draw_seed: int = 0
    prior_codes: Tensor | None = None
    prior_view: Tensor | None = None

    @property
    def spans(self) -> Spans:
        """The images of the studies."""
        return Spans.of(self.codes, self.view, self.prior_codes, self.prior_view)

    def own_images(self, pad: int) -> Tensor:
        """(B,) images of each study, without those of an earlier visit."""
        return (self.view.view(len(self), -1) != pad).sum(dim=1)

    def __len__(self) -> int:
        return len(self.codes)

    def to(self, device: torch.device) -> "StudyBatch":
        """The batch on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: v.to(device, non_blocking=True) for name, v in values.items() if isinstance(v, Tensor)}
        return StudyBatch(**values | tensors)


def normalise_report(text: str) -> str:
    """What counts as the same report: letters and digits alone, in lower case."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def key64(text: str) -> int:
    """A signed 64-bit name for a text, for comparisons on tensors."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


class ReportCodec:
    """Reports to ids and back.

    Args:
        tokenizer: of the words.
        vocabulary: of the model.
        sections: which sections are written, in this order; a report without any of them is empty.
        max_tokens: longer reports are cut, their last ids dropped.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, sections: Sequence[str], max_tokens: int
    ) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.sections, self.max_tokens = tuple(sections), max_tokens

    def encode(self, report: Mapping[str, str]) -> list[int]:
        """``{"findings": …, "impression": …}`` -> ids; an absent or empty section is left out."""
        ids: list[int] = []
        for section in self.sections:
            text = report.get(section, "").strip()
            if text:
                ids.append(self.vocabulary.section(section))
                ids += self.tokenizer.encode(text, add_special_tokens=False)
        return ids[: self.max_tokens]

    def decode(self, ids: Sequence[int]) -> dict[str, str]:
        """Ids (up to ``<eos>``) -> sections; what stands before any section token is taken as findings."""
        parts: dict[str, list[int]] = {section: [] for section in SECTIONS}
        section_of = {self.vocabulary.section(section): section for section in SECTIONS}
        current = SECTIONS[0]
        for token in ids:
            if token == self.vocabulary["<eos>"]:
                break
            if token in section_of:
                current = section_of[token]
            elif token < self.vocabulary.text_size:
                parts[current].append(token)
        return {section: self.tokenizer.decode(words).strip() for section, words in parts.items()}


def sections_of(text_choice: str) -> tuple[str, ...]:
    """``findings+impression`` -> ("findings", "impression")."""
    sections = tuple(text_choice.split("+"))
    if not set(sections) <= set(SECTIONS):
        raise UserError(f"unknown text choice {text_choice!r}: use findings, impression or findings+impression")
    return sections


def pad_reports(reports: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Lists of ids -> (B, T) padded on the right, and (B,) lengths."""
    length = torch.tensor([len(ids) for ids in reports])
    padded = torch.full((len(reports), max(1, int(length.max()))), pad, dtype=torch.long)
    for row, ids in enumerate(reports):
        padded[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return padded, length


def choose_view(views: Sequence[str], draw: np.random.Generator | None) -> int:
    """Which image of a study a row shows: a drawn one in training, else the first frontal one."""
    if draw is not None:
        return int(draw.integers(len(views)))
    for number, position in enumerate(views):
        if view_name(position) in _FRONTAL:
            return number
    return 0


def choose_views(
    views: Sequence[str], most: int, draw: np.random.Generator | None, view_dropout: float = 0.0
) -> list[int]:
    """Which images of a study a row shows, in the row's order: drawn in training, else the first frontal one first.

    Args:
        views: view positions of all images.
        most: images of a row.
        draw: of a training.
        view_dropout: how often one is shown alone.
    """
    if draw is None or most == 1:
        first = choose_view(views, draw)
        return [first, *(number for number in range(len(views)) if number != first)][:most]
    order: list[int] = draw.permutation(len(views)).tolist()
    return order[: 1 if draw.random() < view_dropout else most]


def choose_prior_view(views: Sequence[str], like: str) -> int:
    """Which image of the visit before a row begins with: one taken ``like`` the row's first, else a frontal one."""
    alike = [number for number, position in enumerate(views) if view_name(position) == view_name(like)]
    return alike[0] if alike else choose_view(views, None)


class StudyCollator:
    """Samples of token shards -> :class:`StudyBatch`. A sample's ``prior`` is shown where it has one.

    Args:
        codec: of the reports.
        text_dropout: share of the studies whose image is learned without text.
        seed: what is drawn for a sample depends on it and the sample's position alone.
        training: draw views and dropouts; otherwise the first frontal view and all texts.
        section_dropout: share of the reports of several sections that show one of them alone.
        max_views: images of a row at most; with 1 a batch has no axis for them.
        view_dropout: share of the rows that show one image though there are more.
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
    ) -> None:
        self.codec, self.text_dropout, self.seed, self.training = codec, text_dropout, seed, training
        self.section_dropout, self.max_views, self.view_dropout = section_dropout, max_views, view_dropout

    def __call__(self, samples: Sequence[tuple[int, Sample]]) -> StudyBatch:
        rows: list[dict[str, Any]] = [self._row(position, sample) for position, sample in samples]
        report, length = pad_reports([row["report"] for row in rows], self.codec.vocabulary["<pad>"])
        codes, view = self._images([row["images"] for row in rows])
        earlier = [row["prior"] for row in rows]
        prior_codes, prior_view = self._images(earlier) if any(len(view) for _, view in earlier) else (None, None)
        return StudyBatch(
            codes=codes[:, 0] if self.max_views == 1 else codes,
            view=view[:, 0] if self.max_views == 1 else view,
            report=report,
            report_length=length,
            report_key=torch.tensor([row["report_key"] for row in rows]),
            patient_key=torch.tensor([row["patient_key"] for row in rows]),
            drop_text=torch.tensor([row["drop_text"] for row in rows]),
            prior_codes=prior_codes,
            prior_view=prior_view,
        )

    def _images(self, rows: Sequence[tuple[np.ndarray, list[int]]]) -> tuple[Tensor, Tensor]:
        """(S, N) codes and S view ids a row -> (B, S, N), (B, S) padded."""
        codes = pad_sequence([torch.from_numpy(codes) for codes, _ in rows], batch_first=True)
        views = [torch.tensor(view, dtype=torch.long) for _, view in rows]
        return codes, pad_sequence(views, batch_first=True, padding_value=self.codec.vocabulary["<pad>"])

    def _shown(self, sample: Sample, numbers: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """(S, N) codes and S view ids of some images."""
        if sample.codes is None:
            raise UserError("these shards hold images, not codes: run `medunifier tokenize` on them first")
        codes = sample.codes[list(numbers)].reshape(len(numbers), sample.codes[0].size).astype(np.int64)
        return codes, [self.codec.vocabulary.view(sample.info["views"][number]) for number in numbers]

    def _row(self, position: int, sample: Sample) -> dict[str, Any]:
        draw = np.random.default_rng((self.seed, position)) if self.training else None
        views = sample.info["views"]
        numbers = choose_views(views, self.max_views, draw, self.view_dropout)
        images, prior = self._shown(sample, numbers), self._shown(sample, [])
        if sample.prior is not None:
            prior = self._shown(sample.prior, [choose_prior_view(sample.prior.info["views"], like=views[numbers[0]])])
        report = sample.info["report"]
        text = " ".join(report.get(section, "") for section in self.codec.sections)
        drop_text = draw is not None and bool(draw.random() < self.text_dropout)
        if draw is not None and draw.random() < self.section_dropout:
            there = [section for section in self.codec.sections if report.get(section, "").strip()]
            report = {section: report[section] for section in there[int(draw.integers(len(there))) :][:1]}
        return {
            "images": images,
            "prior": prior,
            "report": self.codec.encode(report),
            # Of the whole report: two studies that say the same are the same, whatever is shown of them.
            "report_key": key64(normalise_report(text)),
            "patient_key": key64(sample.info["patient_id"]),
            "drop_text": drop_text,
        }
