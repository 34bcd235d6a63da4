"""Sequence layout: the images and the report of a study as ids, in the two orders that the model is trained on.

    image first   <bos> images <emb_img> report <eos> <match>
    text first    <bos> report <emb_txt> images
    images        [<prior> <view> <boi> c1 … cN <eoi>]… <view> <boi> c1 … cN <eoi> …

Images of the prior study come before those of the study itself. Sequences are padded on the right, where no real
token attends to a pad under a causal mask. Their width follows from the shapes of the images and reports alone, not
from how many of them are real: nothing is read from the device, and compiled layers see few different shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medunifier.stage2_unified.model.vocabulary import (
    BOI,
    BOS,
    EMB_IMG,
    EMB_TXT,
    EOI,
    EOS,
    MATCH,
    PAD,
    PRIOR,
    Vocabulary,
)

SPAN_SPECIALS = 3
"""``<view> <boi> <eoi>`` beside the codes of an image; an image of the prior study has ``<prior>`` too."""
_SEQUENCE_SPECIALS = 5  # <bos> <emb_img> <emb_txt> <eos> <match>, at most, beside text and images


def longest_sequence(image_tokens: int, report_tokens: int, max_views: int, prior: bool) -> int:
    """Return the ids of the longest prefix and branch.

    Args:
        image_tokens: N, codes of an image.
        report_tokens: ids of the longest report.
        max_views: images of a study.
        prior: whether an image of the prior study precedes them.
    """
    span = image_tokens + SPAN_SPECIALS
    return max_views * span + prior * (span + 1) + report_tokens + _SEQUENCE_SPECIALS


@dataclass(frozen=True)
class ImageSpans:
    """The images of B studies.

    Attributes:
        codes: (B, S, N) image codes in [0, K).
        view: (B, S) ids of the view tokens; ``<pad>``, after the others, where a study has fewer images.
        prior_codes: (B, P, N) codes of the prior study's images; None = no study has any.
        prior_view: (B, P) view ids of these, padded likewise.
    """

    codes: Tensor
    view: Tensor
    prior_codes: Tensor | None = None
    prior_view: Tensor | None = None

    @classmethod
    def of(
        cls, codes: Tensor, view: Tensor, prior_codes: Tensor | None = None, prior_view: Tensor | None = None
    ) -> "ImageSpans":
        """Return the spans of studies with several images each, or of one image each without an axis for them.

        Args:
            codes: (B, S, N) or (B, N).
            view: (B, S) or (B,).
            prior_codes: (B, P, N) or (B, N).
            prior_view: (B, P) or (B,).

        Raises:
            ValueError: if the shapes of codes and views do not match.
        """
        if view.dim() == 1:
            codes, view = codes[:, None], view[:, None]
        if prior_view is not None and prior_codes is not None and prior_view.dim() == 1:
            prior_codes, prior_view = prior_codes[:, None], prior_view[:, None]
        matches = [codes.shape[:2] == view.shape, (prior_codes is None) == (prior_view is None)]
        if prior_codes is not None and prior_view is not None:
            matches.append(prior_codes.shape[:2] == prior_view.shape and len(prior_codes) == len(codes))
        if not all(matches):
            shapes = [None if t is None else tuple(t.shape) for t in (codes, view, prior_codes, prior_view)]
            raise ValueError(f"codes {shapes[0]} and views {shapes[1]}, of a prior {shapes[2:]}, do not fit")
        return cls(codes, view, prior_codes, prior_view)

    @classmethod
    def none(cls, studies: int, device: torch.device) -> "ImageSpans":
        """Return the spans of studies without any image."""
        codes = torch.empty(studies, 0, 0, dtype=torch.long, device=device)
        return cls(codes, codes.flatten(1))

    def __len__(self) -> int:
        return len(self.codes)

    def to(self, device: torch.device) -> "ImageSpans":
        """Return the spans on another device."""
        return self._each(lambda tensor: on_device(tensor, device))

    def pin_memory(self) -> "ImageSpans":
        """Return the spans in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def count(self, pad: int) -> Tensor:
        """Return the (B,) number of images of each study, without those of the prior study."""
        return (self.view != pad).sum(dim=1)

    def doubled(self) -> "ImageSpans":
        """Return the spans of the same studies twice, (2 B, …)."""
        return self._each(lambda tensor: torch.cat([tensor, tensor]))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "ImageSpans":
        tensors = (self.codes, self.view, self.prior_codes, self.prior_view)
        codes, view, prior_codes, prior_view = (None if t is None else function(t) for t in tensors)
        assert codes is not None and view is not None  # noqa: S101 - narrows a type
        return ImageSpans(codes, view, prior_codes, prior_view)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to a GPU without waiting for the copy, which is safe from page-locked memory."""
    return tensor.to(device, non_blocking=device.type == "cuda")


@dataclass(frozen=True)
class Sequences:
    """B sequences of ids, padded on the right.

    Attributes:
        ids: (B, L).
        length: (B,) ids of each without its padding.
        codes: codes of a sequence in which no image is absent: of images that are read, and that are generated.
    """

    ids: Tensor
    length: Tensor
    codes: tuple[int, int] = (0, 0)


class SequenceBuilder:
    """Arrange image spans and reports as sequences of a vocabulary's ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.pad = vocabulary, vocabulary[PAD]

    def image_first(self, images: ImageSpans) -> Sequences:
        """Return ``<bos> images <emb_img>``, the prefix that reports continue."""
        parts = [self._special(BOS, images.view), *self._spans(images), self._special(EMB_IMG, images.view)]
        return packed(torch.cat(parts, dim=1), self.pad, (sum(_codes(images)), 0))

    def with_report(self, prefix: Sequences, report: Tensor, report_length: Tensor) -> Sequences:
        """Return ``prefix report <eos> <match>`` of (B, T) report ids padded on the right, and their (B,) lengths."""
        branch = self.append_specials(report, report_length, EOS, MATCH)
        return packed(torch.cat([prefix.ids, branch], dim=1), self.pad, prefix.codes)

    def text_first(
        self,
        report: Tensor,
        report_length: Tensor,
        images: ImageSpans | None = None,
        next_view: Tensor | None = None,
    ) -> tuple[Sequences, Tensor]:
        """Return ``<bos> report <emb_txt> images``, and up to ``<boi>`` of one more image if its view is passed.

        Args:
            report: (B, T) ids padded on the right.
            report_length: (B,).
            images: those after the report; None = none.
            next_view: (B,) view ids of an image to generate.

        Returns:
            The sequences, and (B, S) positions of each image's ``<boi>``, which predicts its first code.
        """
        images = ImageSpans.none(len(report), report.device) if images is None else images
        text = self.append_specials(report, report_length, EMB_TXT)
        parts = [self._special(BOS, report), text, *self._spans(images)]
        if next_view is not None:
            parts += [next_view[:, None], self._special(BOI, report)]
        span = images.codes.shape[-1] + SPAN_SPECIALS
        numbers = torch.arange(images.codes.shape[1], device=report.device)
        boi = (report_length + 3 + self._prior_ids(images))[:, None] + numbers * span
        return packed(torch.cat(parts, dim=1), self.pad, _codes(images)), boi

    def append_specials(self, report: Tensor, report_length: Tensor, *specials: str) -> Tensor:
        """Return (B, T + S) ids: the (B, T) reports, each followed by the S specials."""
        tail = torch.cat([self._special(name, report) for name in specials], dim=1)
        return append(report, report_length, tail, self.pad)

    def prepend_bos(self, ids: Tensor) -> Tensor:
        """Return (B, 1 + L) ids that begin with ``<bos>``."""
        return torch.cat([self._special(BOS, ids), ids], dim=1)

    def _special(self, name: str, like: Tensor) -> Tensor:
        """Return (B, 1) ids of one special, on the device of ``like`` (B, …)."""
        return torch.full((len(like), 1), self.vocabulary[name], device=like.device)

    def _spans(self, images: ImageSpans) -> list[Tensor]:
        """Return (B, L) ids of the prior and of the study's images; those of an absent image are all ``<pad>``."""
        parts = []
        if images.prior_codes is not None and images.prior_view is not None:
            parts.append(self._span(images.prior_codes, images.prior_view, PRIOR))
        return [*parts, self._span(images.codes, images.view)]

    def _span(self, codes: Tensor, view: Tensor, *opening: str) -> Tensor:
        special = {name: torch.full_like(view, self.vocabulary[name])[..., None] for name in (*opening, BOI, EOI)}
        ids = torch.cat(
            [*(special[name] for name in opening), view[..., None], special[BOI], codes + self.vocabulary.offset,
             special[EOI]], dim=-1,
        )  # fmt: skip
        return torch.where((view != self.pad)[..., None], ids, self.pad).flatten(1)

    def _prior_ids(self, images: ImageSpans) -> Tensor:
        """Return the (B,) ids of the spans of each study's prior images."""
        if images.prior_view is None:
            return images.view.new_zeros(len(images))
        return (images.prior_view != self.pad).sum(dim=1) * (images.codes.shape[-1] + SPAN_SPECIALS + 1)


def _codes(images: ImageSpans) -> tuple[int, int]:
    """Return the codes of a study's prior images and of its images, if none is absent."""
    prior = 0 if images.prior_codes is None else images.prior_codes[0].numel()
    return prior, images.codes[0].numel()


def packed(ids: Tensor, pad: int, codes: tuple[int, int] = (0, 0)) -> Sequences:
    """Move the pads among (B, L) ids to the right, without a change of shape."""
    real, columns = ids != pad, ids.shape[1]
    target = torch.where(real, real.cumsum(dim=1) - 1, columns)  # of pads: one more column, which is cut off
    moved = torch.full_like(ids[:, :1], pad).repeat(1, columns + 1).scatter(1, target, ids)
    return Sequences(moved[:, :columns].contiguous(), real.sum(dim=1), codes)


def append(left: Tensor, length: Tensor, tail: Tensor, pad: int) -> Tensor:
    """Return (B, T + S) ids, padded right: the first ``length`` (B,) of ``left`` (B, T), then ``tail`` (B, S)."""
    real = torch.arange(left.shape[1], device=left.device) < length[:, None]
    return packed(torch.cat([left.masked_fill(~real, pad), tail], dim=1), pad).ids


def left_padded(sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Move the padding to the left, so that all sequences continue at the same column.

    Returns:
        (B, W) ids; (B, W) bool, False on padding; (B, W) positions, from 0 at each sequence's first id.
    """
    ids, length = sequences.ids, sequences.length
    width = int(length.max())
    shift = (width - length)[:, None]
    columns = torch.arange(width, device=ids.device)[None, :]
    positions = (columns - shift).clamp(min=0)
    return ids.gather(1, positions), columns >= shift, positions
