"""Convert radiographs and reports to model inputs, and model outputs back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor, PreTrainedTokenizerBase

from medunifier.shared.artifacts import read_json
from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder
from medunifier.shared.hub import PushFolder
from medunifier.stage1_tokenizer.frozen import IMAGE_TOKENIZER, FrozenTokenizer
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.processing.report_codec import ReportCodec, pad_reports, sections_of
from medunifier.stage2_unified.model.processing.text_tokenizer import load_text_tokenizer
from medunifier.stage2_unified.model.sequences import ImageSpans
from medunifier.stage2_unified.model.vocabulary import PAD, SPECIALS, UNCOND

Codes = np.ndarray | Tensor | Sequence[np.ndarray] | Sequence[Tensor]
Prior = tuple[np.ndarray | Tensor, str]

PROCESSOR_CONFIG = "processor_config.json"


class MedUnifierProcessor(PushFolder):
    """Text tokenizer for reports and frozen image tokenizer for radiographs.

    Args:
        tokenizer: text tokenizer.
        image_tokenizer: frozen, from stage 1.
        config: of the model whose inputs it makes.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_tokenizer: FrozenTokenizer, config: MedUnifierConfig
    ) -> None:
        if image_tokenizer.fingerprint != config.tokenizer_fingerprint:
            raise UserError(
                f"the model was trained on codes of image tokenizer {config.tokenizer_fingerprint[:12]}…, but "
                f"image tokenizer {image_tokenizer.fingerprint[:12]}… was passed"
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
    ) -> dict[str, Any]:
        """Return model inputs, by the argument names of the model's methods.

        Args:
            images: (B, 1, H, W) in [-1, 1], one a study, or B tensors (S, 1, H, W).
            codes: (B, h, w) or B arrays (S, h, w), in place of images.
            views: DICOM view positions, one an image ("" where unknown), or B lists of them.
            reports: ``{"findings", "impression"}``, either may be absent.
            priors: of each study an image of the prior study, its codes (h, w) and view position, or None.

        Returns:
            With images or codes: ``images``, the :class:`ImageSpans`. Without them, for images to generate: ``view``
            (B,) or (B, S), and ``prior_codes`` (B, 1, N), ``prior_view`` (B, 1) if any study has a prior. With
            reports: ``report`` (B, T), ``report_length`` (B,).

        Raises:
            UserError: for more images a study, or a prior, than the model was trained with.
            ValueError: for images or codes without views.
        """
        inputs: dict[str, Any] = {}
        if images is not None:
            stacks = [images] if isinstance(images, Tensor) else list(images)
            encoded = self.image_tokenizer.encode_indices(torch.cat(stacks), "auto").cpu()
            codes = encoded if isinstance(images, Tensor) else encoded.split([len(stack) for stack in stacks])
        if views is not None:
            inputs["view"] = self._views(views)
        if priors is not None and any(prior is not None for prior in priors):
            if not self.config.prior:
                raise UserError("the model was trained without prior studies (data.prior): leave the prior image out")
            none = np.empty((0, *self.config.grid), np.int64)
            inputs["prior_codes"] = self._codes([none if p is None else np.asarray(p[0])[None] for p in priors])
            inputs["prior_view"] = self._views([[] if p is None else [p[1]] for p in priors])
        if codes is not None:
            if views is None:
                raise ValueError("images or codes without views: pass one view position an image, '' where unknown")
            inputs = {"images": ImageSpans.of(self._codes(codes), **inputs)}
        if reports is not None:
            # An empty report is <uncond>: an image or an embedding without any text.
            encoded_reports = [self.codec.encode(report) or [self.vocabulary[UNCOND]] for report in reports]
            inputs["report"], inputs["report_length"] = pad_reports(encoded_reports, self.vocabulary[PAD])
        return inputs

    def _codes(self, codes: Codes) -> Tensor:
        """Return (B, N), or (B, S, N) padded with 0."""
        if np.ndim(codes[0] if len(codes) else codes) == len(self.config.grid):
            return torch.as_tensor(np.asarray(codes, dtype=np.int64)).flatten(1)
        stacks = [torch.as_tensor(np.asarray(stack, dtype=np.int64)) for stack in codes]
        return pad_sequence([stack.view(len(stack), self.config.image_tokens) for stack in stacks], batch_first=True)

    def _views(self, views: Sequence[str] | Sequence[Sequence[str]]) -> Tensor:
        """Return (B,), or (B, S) padded with ``<pad>``."""
        if views and isinstance(views[0], str):
            return torch.tensor([self.vocabulary.view(str(view)) for view in views])
        longest = max((len(of_study) for of_study in views), default=0)
        if longest > self.config.max_views:
            raise UserError(
                f"the model was trained on {self.config.max_views} images of a study at most (data.max_views), "
                f"got {longest}: leave some out"
            )
        ids = [torch.tensor([self.vocabulary.view(v) for v in of_study], dtype=torch.long) for of_study in views]
        return pad_sequence(ids, batch_first=True, padding_value=self.vocabulary[PAD])

    def codes_to_images(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> (B, H, W) in [0, 1]."""
        images: Tensor = self.image_tokenizer.decode_indices(codes)
        return ((images[:, 0].float() + 1) / 2).clamp(0, 1)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write both tokenizers into a model folder."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_tokenizer.save(folder / IMAGE_TOKENIZER)
        content = {"processor_class": type(self).__name__, "specials": list(SPECIALS)}
        (folder / PROCESSOR_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> "MedUnifierProcessor":
        """Load a model folder.

        Raises:
            UserError: if the folder is not a medunifier model, or its parts do not belong together.
        """
        folder = Path(folder)
        content = read_json(folder / PROCESSOR_CONFIG, "a medunifier model folder (runs/…/model)")
        if content.get("specials") != list(SPECIALS):
            raise UserError(f"{folder} was written by another version of medunifier: its special tokens differ")
        with checked_model_folder(folder, "a model"):
            config = MedUnifierConfig.from_pretrained(folder)
        frozen = FrozenTokenizer.from_pretrained(folder / IMAGE_TOKENIZER)
        if config.grid != list(frozen.grid) or config.codebook_size != frozen.codebook_size:
            raise UserError(
                f"{folder}: the model expects {config.codebook_size} codes on a grid {config.grid}, "
                f"its image tokenizer has {frozen.codebook_size} on {list(frozen.grid)}: they do not belong together"
            )
        return cls(load_text_tokenizer(str(folder)), frozen, config)


AutoProcessor.register(MedUnifierConfig, MedUnifierProcessor)
