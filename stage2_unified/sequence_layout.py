"""The rows of a study as ids: its images, each a span, before or behind its report.

    image first   <bos> [<prior> <view> <boi> c1 … cN <eoi>]… <view> <boi> c1 … cN <eoi> … <emb_img>
    text first    <bos> report <emb_txt> [<prior> <view> <boi> c1 … cN <eoi>]… <view> <boi> c1 … cN <eoi> …

Images of the earlier visit come first, then those of the study itself. Studies differ in how many they have: rows
are padded on the right, where under a causal mask no real token sees a pad.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stage2_unified.vocabulary import BOI, BOS, EMB_IMG, EMB_TXT, EOI, PAD, PRIOR, Vocabulary

SPAN_SPECIALS = 3
"""<view> <boi> <eoi> beside the codes of an image; one of an earlier visit has ``<prior>`` too."""
_ROW_SPECIALS = 5  # <bos> <emb_img> <emb_txt> <eos> <match>, at most, beside text and images


def longest_row(tokens: int, report: int, max_views: int, prior: bool) -> int:
    """Ids of the longest row and branch: ``tokens`` codes an image, ``report`` ids a report."""
    image = tokens + SPAN_SPECIALS
    return max_views * image + prior * (image + 1) + report + _ROW_SPECIALS


@dataclass(frozen=True)
class Spans:
    """The images of B studies.

    Attributes:
        codes: (B, S, N) image codes in [0, K).
        view: (B, S) ids of the view tokens; ``<pad>``, behind the others, where a study has fewer images.
        prior_codes, prior_view: (B, P, N), (B, P) of the visit before, in the same form; None = nobody has any.
        even: every study has S images and P earlier ones; known without a look at the tensors.
    """

    codes: Tensor
    view: Tensor
    prior_codes: Tensor | None = None
    prior_view: Tensor | None = None
    even: bool = False

    @classmethod
    def of(
        cls, codes: Tensor, view: Tensor, prior_codes: Tensor | None = None, prior_view: Tensor | None = None
    ) -> "Spans":
        """The same with one image a study and no axis for it, (B, N) and (B,), allowed.

        Raises:
            ValueError: if codes and views do not fit each other.
        """
        even = view.dim() == 1 and prior_view is None
        if view.dim() == 1:
            codes, view = codes[:, None], view[:, None]
        if prior_view is not None and prior_codes is not None and prior_view.dim() == 1:
            prior_codes, prior_view = prior_codes[:, None], prior_view[:, None]
        spans = cls(codes, view, prior_codes, prior_view, even)
        given = [codes.shape[:2] == view.shape, (prior_codes is None) == (prior_view is None)]
        if prior_codes is not None and prior_view is not None:
            given.append(prior_codes.shape[:2] == prior_view.shape and len(prior_codes) == len(codes))
        if not all(given):
            shapes = [None if t is None else tuple(t.shape) for t in (codes, view, prior_codes, prior_view)]
            raise ValueError(f"codes {shapes[0]} and views {shapes[1]}, of a prior {shapes[2:]}, do not fit")
        return spans

    @classmethod
    def none(cls, rows: int, tokens: int, device: torch.device) -> "Spans":
        """No image of any of so many studies."""
        nothing = torch.empty(rows, 0, tokens, dtype=torch.long, device=device)
        return cls(nothing, nothing[..., 0], even=True)

    def twice(self) -> "Spans":
        """The same studies a second time behind themselves."""
        prior_codes, prior_view = (
            None if t is None else torch.cat([t, t]) for t in (self.prior_codes, self.prior_view)
        )
        return Spans(torch.cat([self.codes] * 2), torch.cat([self.view] * 2), prior_codes, prior_view, even=self.even)


@dataclass(frozen=True)
class Rows:
    """B rows, padded on the right.

    Attributes:
        ids: (B, L).
        length: (B,) real ids of each; None = all of them.
    """

    ids: Tensor
    length: Tensor | None


class RowBuilder:
    """Puts spans and reports into rows, with the ids of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.pad = vocabulary, vocabulary[PAD]

    def image_first(self, spans: Spans) -> Rows:
        """(B, P + S images) -> ``<bos> spans <emb_img>``."""
        return self._packed([self._token(BOS, spans.view), *self._spans(spans), self._token(EMB_IMG, spans.view)],
                            spans.even)  # fmt: skip

    def text_first(
        self, report: Tensor, report_length: Tensor, spans: Spans, next_view: Tensor | None = None
    ) -> tuple[Rows, Tensor]:
        """``<bos> report <emb_txt> spans``, and up to ``<boi>`` of one more image if its view is given.

        Args:
            report: (B, T) ids padded on the right.
            report_length: (B,).
            spans: the images behind the report.
            next_view: (B,) view ids of an image that is to be drawn.

        Returns:
            The rows; their length is always given. And (B, S) places of each image's ``<boi>``, which predicts its
            first code.
        """
        parts = [self._token(EMB_TXT, report), *self._spans(spans)]
        if next_view is not None:
            parts += [next_view[:, None], self._token(BOI, report)]
        tail = self._packed(parts, spans.even)
        ids = self.begun(append(report, report_length, tail.ids, self.pad))
        length = 1 + report_length + (tail.ids.shape[1] if tail.length is None else tail.length)
        tokens, first = spans.codes.shape[-1], report_length + 2
        if spans.prior_view is not None:
            first = first + (spans.prior_view != self.pad).sum(1) * (tokens + SPAN_SPECIALS + 1)
        images = torch.arange(spans.codes.shape[1], device=first.device)
        begin = first[:, None] + images * (tokens + SPAN_SPECIALS) + 1
        return Rows(ids, length), begin

    def ended(self, report: Tensor, report_length: Tensor, *specials: str) -> Tensor:
        """(B, T) reports -> (B, T + S), the specials right behind each."""
        tail = torch.cat([self._token(name, report) for name in specials], dim=1)
        return append(report, report_length, tail, self.pad)

    def begun(self, ids: Tensor) -> Tensor:
        """The same behind ``<bos>``."""
        return torch.cat([self._token(BOS, ids), ids], dim=1)

    def real(self, spans: Spans) -> Tensor | None:
        """(B, S) bool, which of the study's own images there are; None = all of them."""
        if spans.even:
            return None
        real = spans.view != self.pad
        return None if real.all() else real

    def _token(self, name: str, beside: Tensor) -> Tensor:
        """One special for every row: (B, 1) ids."""
        return torch.full((len(beside), 1), self.vocabulary[name], device=beside.device)

    def _spans(self, spans: Spans) -> list[Tensor]:
        """(B, width) ids a part; all of an absent image's are ``<pad>``."""
        parts = []
        if spans.prior_codes is not None and spans.prior_view is not None:
            parts.append(self._span(spans.prior_codes, spans.prior_view, opened_by=PRIOR))
        return [*parts, self._span(spans.codes, spans.view)]

    def _span(self, codes: Tensor, view: Tensor, opened_by: str = "") -> Tensor:
        opening = [opened_by] if opened_by else []
        special = {name: torch.full_like(view, self.vocabulary[name])[..., None] for name in (*opening, BOI, EOI)}
        ids = torch.cat(
            [*(special[name] for name in opening), view[..., None], special[BOI], codes + self.vocabulary.offset,
             special[EOI]], dim=-1,
        )  # fmt: skip
        return torch.where((view != self.pad)[..., None], ids, self.pad).flatten(1)

    def _packed(self, parts: list[Tensor], even: bool) -> Rows:
        """Parts one behind the other, the pads among them moved to the right edge."""
        ids = torch.cat(parts, dim=1)
        real = ids != self.pad
        if even or real.all():
            return Rows(ids, None)
        length = real.sum(dim=1)
        order = (~real).byte().argsort(dim=1, stable=True)
        return Rows(ids.gather(1, order)[:, : int(length.max())], length)


def append(left: Tensor, length: Tensor, tail: Tensor, pad: int) -> Tensor:
    """Put ``tail`` (B, S) right behind the ``length`` real ids of ``left`` (B, T): (B, T + S), padded right."""
    joined = torch.cat([left, torch.full_like(tail, pad)], dim=1)
    places = length[:, None] + torch.arange(tail.shape[1], device=tail.device)
    real = torch.arange(joined.shape[1], device=joined.device) < length[:, None]
    return joined.where(real, torch.full_like(joined, pad)).scatter(1, places, tail)


def left_padded(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Rows moved to the right edge, so that all of them go on at the same column.

    Returns:
        (B, W) ids; (B, W) bool, False on padding; (B, W) positions from each row's first id on.
    """
    length = rows.length if rows.length is not None else torch.full_like(rows.ids[:, 0], rows.ids.shape[1])
    width = int(length.max())
    shift = (width - length)[:, None]
    columns = torch.arange(width, device=rows.ids.device)[None, :]
    places = (columns - shift).clamp(min=0)
    return rows.ids.gather(1, places), columns >= shift, places
