"""Between people's things and the model's: radiographs and reports to ids, and back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor, PreTrainedTokenizerBase

from shared.artifacts import read_json
from shared.errors import UserError
from shared.hub import PushFolder
from stage1_tokenizer.frozen import FrozenTokenizer
from stage2_unified.configuration import MedUnifierConfig
from stage2_unified.model import MedUnifierForConditionalGeneration
from stage2_unified.rows import Spans, left_padded
from stage2_unified.sequences import ReportCodec, pad_reports, sections_of
from stage2_unified.text_tokenizer import load_text_tokenizer
from stage2_unified.vocabulary import EOS, NEVER_WRITTEN, PAD, SECTIONS, SPECIALS, UNCOND

Codes = np.ndarray | Tensor | Sequence[np.ndarray] | Sequence[Tensor]
Prior = tuple[np.ndarray | Tensor, str]

PROCESSOR_CONFIG = "processor_config.json"
IMAGE_TOKENIZER = "image_tokenizer"


class MedUnifierProcessor(PushFolder):
    """Reports by a text tokenizer, radiographs by the frozen image tokenizer.

    Args:
        tokenizer: of the words.
        image_tokenizer: frozen, from stage 1.
        config: of the model that it serves.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_tokenizer: FrozenTokenizer, config: MedUnifierConfig
    ) -> None:
        if image_tokenizer.fingerprint != config.tokenizer_fingerprint:
            raise UserError(
                f"the model was trained on codes of another image tokenizer ({config.tokenizer_fingerprint[:12]}…, "
                f"given {image_tokenizer.fingerprint[:12]}…)"
            )
        self.tokenizer, self.image_tokenizer, self.config = tokenizer, image_tokenizer, config
        self.vocabulary = config.vocabulary
        self.codec = ReportCodec(
            tokenizer, self.vocabulary, sections_of(config.text_choice), config.max_report_tokens
        )

    def __call__(
        self,
        images: Tensor | Sequence[Tensor] | None = None,
        codes: Codes | None = None,
        views: Sequence[str] | Sequence[Sequence[str]] | None = None,
        reports: Sequence[Mapping[str, str]] | None = None,
        priors: Sequence[Prior | None] | None = None,
    ) -> dict[str, Tensor]:
        """What the model's methods take, by their argument names.

        Args:
            images: (B, 1, H, W) in [-1, 1], one a study, or B tensors (S, 1, H, W); or
            codes: (B, h, w) or B arrays (S, h, w), where they are known already.
            views: DICOM view positions, one an image ("" where unknown), or B lists of them.
            reports: ``{"findings", "impression"}``, either may be absent.
            priors: of each study an image of the visit before, its codes (h, w) and view position, or None.

        Returns:
            ``codes`` (B, N) or (B, S, N), ``view`` (B,) or (B, S), ``report`` (B, T), ``report_length`` (B,),
            ``prior_codes`` (B, 1, N), ``prior_view`` (B, 1), as far as given.

        Raises:
            UserError: for more images a study, or a prior, than the model was trained with.
        """
        inputs: dict[str, Tensor] = {}
        if images is not None:
            stacks = [images] if isinstance(images, Tensor) else list(images)
            found = self.image_tokenizer.encode_indices(torch.cat(stacks)).cpu()
            codes = found if isinstance(images, Tensor) else found.split([len(stack) for stack in stacks])
        if codes is not None:
            inputs["codes"] = self._codes(codes)
        if views is not None:
            inputs["view"] = self._views(views)
        if priors is not None and any(prior is not None for prior in priors):
            if not self.config.prior:
                raise UserError(
                    "the model was trained without the visit before (data.prior): it reads no prior image"
                )
            none = np.empty((0, *self.config.grid), np.int64)
            inputs["prior_codes"] = self._codes([none if p is None else np.asarray(p[0])[None] for p in priors])
            inputs["prior_view"] = self._views([[] if p is None else [p[1]] for p in priors])
        if reports is not None:
            # An empty report is what the model knows as <uncond>: draw, or embed, without any text.
            encoded = [self.codec.encode(report) or [self.vocabulary[UNCOND]] for report in reports]
            inputs["report"], inputs["report_length"] = pad_reports(encoded, self.vocabulary[PAD])
        return inputs

    def _codes(self, codes: Codes) -> Tensor:
        """(B, N), or (B, S, N) filled up with 0."""
        if np.ndim(codes[0] if len(codes) else codes) == len(self.config.grid):
            return torch.as_tensor(np.asarray(codes, dtype=np.int64)).flatten(1)
        stacks = [torch.as_tensor(np.asarray(stack, dtype=np.int64)) for stack in codes]
        return pad_sequence([stack.view(len(stack), self.config.image_tokens) for stack in stacks], batch_first=True)

    def _views(self, views: Sequence[str] | Sequence[Sequence[str]]) -> Tensor:
        """(B,), or (B, S) filled up with ``<pad>``."""
        if views and isinstance(views[0], str):
            return torch.tensor([self.vocabulary.view(str(view)) for view in views])
        most = max((len(of_study) for of_study in views), default=0)
        if most > self.config.max_views:
            raise UserError(
                f"the model was trained on {self.config.max_views} images of a study at most (data.max_views), "
                f"got {most}: leave some out"
            )
        ids = [torch.tensor([self.vocabulary.view(v) for v in of_study], dtype=torch.long) for of_study in views]
        return pad_sequence(ids, batch_first=True, padding_value=self.vocabulary[PAD])

    def codes_to_images(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> (B, H, W) in [0, 1]."""
        images: Tensor = self.image_tokenizer.decode_indices(codes)
        return ((images[:, 0].float() + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def write_reports(
        self,
        model: MedUnifierForConditionalGeneration,
        codes: Tensor,
        view: Tensor,
        section: str | None = None,
        prior_codes: Tensor | None = None,
        prior_view: Tensor | None = None,
        **generate: Any,
    ) -> list[dict[str, str]]:
        """A report a study, by ``generate()`` with its usual arguments (greedy unless told).

        Args:
            model: in eval mode.
            codes, view, prior_codes, prior_view: what is seen, as :meth:`__call__` makes it.
            section: write this one alone ("findings", "impression"); a model learned to if it was trained with
                ``data.section_dropout``.

        Raises:
            UserError: for a section that the model was not trained on.
        """
        ids, visible, _ = left_padded(model.rows.image_first(Spans.of(codes, view, prior_codes, prior_view)))
        begin, ends = ids.shape[1], [EOS]
        if section is not None:
            if section not in self.codec.sections:
                raise UserError(f"the model writes {' and '.join(self.codec.sections)}, not {section!r}")
            ids = torch.cat([ids, torch.full_like(ids[:, :1], self.vocabulary.section(section))], dim=1)
            visible = torch.cat([visible, visible[:, -1:]], dim=1)
            ends += [f"<{name}>" for name in SECTIONS]  # another section's beginning is this one's end
        defaults = {"max_new_tokens": self.config.max_report_tokens + 1, "do_sample": False}
        output = model.generate(
            ids,
            attention_mask=visible.long(),
            suppress_tokens=[self.vocabulary[name] for name in NEVER_WRITTEN],
            eos_token_id=[self.vocabulary[name] for name in ends],
            pad_token_id=self.vocabulary[PAD],
            **{**defaults, **generate},
        )
        return [self.codec.decode(row) for row in output[:, begin:].tolist()]

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write both tokenizers into a model folder."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_tokenizer.save(folder / IMAGE_TOKENIZER)
        content = {"processor_class": type(self).__name__, "specials": list(SPECIALS)}
        (folder / PROCESSOR_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> "MedUnifierProcessor":
        """Read a model folder.

        Raises:
            UserError: if the folder is no model of ours, or its parts do not belong together.
        """
        folder = Path(folder)
        content = read_json(folder / PROCESSOR_CONFIG, "a medunifier model folder (runs/…/model)")
        if tuple(content["specials"]) != SPECIALS:
            raise UserError(f"{folder} was written by another version of medunifier: its special tokens differ")
        config = MedUnifierConfig.from_pretrained(folder)
        return cls(
            load_text_tokenizer(str(folder)), FrozenTokenizer.from_pretrained(folder / IMAGE_TOKENIZER), config
        )


AutoProcessor.register(MedUnifierConfig, MedUnifierProcessor)
