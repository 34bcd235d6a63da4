"""Between people's things and the model's: radiographs and reports to ids, and back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, PreTrainedTokenizerBase

from shared.artifacts import read_json
from shared.errors import UserError
from shared.hub import PushFolder
from stage1_tokenizer.frozen import FrozenTokenizer
from stage2_unified.configuration import MedUnifierConfig
from stage2_unified.model import MedUnifierForConditionalGeneration
from stage2_unified.sequences import ReportCodec, pad_reports, sections_of
from stage2_unified.text_tokenizer import load_text_tokenizer
from stage2_unified.vocabulary import EOS, NEVER_WRITTEN, PAD, SECTIONS, SPECIALS, UNCOND

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
        images: Tensor | None = None,
        codes: np.ndarray | Tensor | None = None,
        views: Sequence[str] | None = None,
        reports: Sequence[Mapping[str, str]] | None = None,
    ) -> dict[str, Tensor]:
        """What the model's methods take, by their argument names.

        Args:
            images: (B, 1, H, W) in [-1, 1]; or
            codes: (B, h, w), where they are known already.
            views: DICOM view positions, one an image; "" where unknown.
            reports: ``{"findings", "impression"}``, either may be absent.

        Returns:
            ``codes`` (B, N), ``view`` (B,), ``report`` (B, T), ``report_length`` (B,), as far as given.
        """
        inputs: dict[str, Tensor] = {}
        if images is not None:
            codes = self.image_tokenizer.encode_indices(images)
        if codes is not None:
            inputs["codes"] = torch.as_tensor(np.asarray(codes, dtype=np.int64)).flatten(1)
        if views is not None:
            inputs["view"] = torch.tensor([self.vocabulary.view(view) for view in views])
        if reports is not None:
            # An empty report is what the model knows as <uncond>: draw, or embed, without any text.
            encoded = [self.codec.encode(report) or [self.vocabulary[UNCOND]] for report in reports]
            inputs["report"], inputs["report_length"] = pad_reports(encoded, self.vocabulary[PAD])
        return inputs

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
        **generate: Any,
    ) -> list[dict[str, str]]:
        """Reports for (B, N) codes, by ``generate()`` with its usual arguments (greedy unless told).

        Args:
            model: in eval mode.
            codes: (B, N).
            view: (B,) view ids.
            section: write this one alone ("findings", "impression"); a model learned to if it was trained with
                ``data.section_dropout``.

        Raises:
            UserError: for a section that the model was not trained on.
        """
        ids = model.image_prefix_ids(codes, view)
        begin, ends = ids.shape[1], [EOS]
        if section is not None:
            if section not in self.codec.sections:
                raise UserError(f"the model writes {' and '.join(self.codec.sections)}, not {section!r}")
            ids = torch.cat([ids, torch.full_like(ids[:, :1], self.vocabulary.section(section))], dim=1)
            ends += [f"<{name}>" for name in SECTIONS]  # another section's beginning is this one's end
        defaults = {"max_new_tokens": self.config.max_report_tokens + 1, "do_sample": False}
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
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
