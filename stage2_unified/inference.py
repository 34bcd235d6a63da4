"""The trained model in use: embed, match, write, draw; numpy in and out, batched inside."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from shared.artifacts import fingerprint
from stage1_tokenizer.frozen import FrozenTokenizer
from stage2_unified.image_backbone import ImageBackbone
from stage2_unified.model import MedUnifierForConditionalGeneration
from stage2_unified.processor import MedUnifierProcessor

Report = Mapping[str, str]


def model_fingerprint(model: MedUnifierForConditionalGeneration) -> str:
    """SHA-256 over the kind of model and its weights."""
    return fingerprint({"model_type": model.config.model_type}, model.state_dict())


class MedUnifierPipeline:
    """A model folder, ready to use.

    Args:
        model, processor: as loaded from one folder.
        device: where to run; an accelerator if there is one.
        batch_size: rows a pass.
    """

    def __init__(
        self,
        model: MedUnifierForConditionalGeneration,
        processor: MedUnifierProcessor,
        device: str | torch.device | None = None,
        batch_size: int = 64,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.processor, self.batch_size = processor, batch_size
        self.processor.image_tokenizer.to(self.device)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | None = None, batch_size: int = 64
    ) -> "MedUnifierPipeline":
        """Load a model folder.

        Raises:
            UserError: if it is not one.
        """
        processor = MedUnifierProcessor.from_pretrained(folder)  # first: its errors speak to a user
        logging.disable_progress_bar()  # a bar for two dozen tensors is noise between our lines
        return cls(MedUnifierForConditionalGeneration.from_pretrained(folder), processor, device, batch_size)

    @property
    def tokenizer(self) -> FrozenTokenizer:
        """The frozen image tokenizer."""
        return self.processor.image_tokenizer

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the model's configuration and weights."""
        return model_fingerprint(self.model)

    @property
    def sections(self) -> str:
        """Which sections of reports the model was trained on: ``findings+impression``, …"""
        return str(self.model.config.text_choice)

    def image_backbone(self, seed: int | None = None) -> ImageBackbone:
        """A copy to fine-tune; with a seed the same architecture with fresh weights."""
        return ImageBackbone(self.model, seed)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W) in [0, 1] -> (N, h, w) codes."""

        def run(begin: int, end: int) -> Tensor:
            batch = torch.from_numpy(np.ascontiguousarray(images[begin:end], dtype=np.float32))
            return self.tokenizer.encode_indices((batch[:, None] * 2 - 1).to(self.device))

        return self._batched(len(images), run)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(N, h, w) codes -> (N, H, W) float32 in [0, 1]."""

        def run(begin: int, end: int) -> Tensor:
            batch = torch.from_numpy(codes[begin:end].astype(np.int64)).to(self.device)
            return self.processor.codes_to_images(batch)

        return self._batched(len(codes), run)

    def embed_images(self, codes: np.ndarray, views: Sequence[str]) -> np.ndarray:
        """(N, h, w) codes and their view positions -> (N, E) unit-norm embeddings."""

        def run(begin: int, end: int) -> Tensor:
            return self.model.get_image_features(**self._inputs(codes=codes[begin:end], views=views[begin:end]))

        return self._batched(len(codes), run)

    def embed_texts(self, reports: Sequence[Report]) -> np.ndarray:
        """N reports ``{"findings", "impression"}`` -> (N, E) unit-norm embeddings."""

        def run(begin: int, end: int) -> Tensor:
            return self.model.get_text_features(**self._inputs(reports=reports[begin:end]))

        return self._batched(len(reports), run)

    def match(self, codes: np.ndarray, views: Sequence[str], reports: Sequence[Report]) -> np.ndarray:
        """(N,) probability that image i and report i belong together."""

        def run(begin: int, end: int) -> Tensor:
            some = slice(begin, end)
            return self.model.match(**self._inputs(codes=codes[some], views=views[some], reports=reports[some]))

        return self._batched(len(codes), run)

    def write_reports(self, codes: np.ndarray, views: Sequence[str], **generate: Any) -> list[dict[str, str]]:
        """A report an image, as sections; ``generate`` as for ``transformers``' ``generate()``."""
        reports: list[dict[str, str]] = []
        for begin in range(0, len(codes), self.batch_size):
            some = slice(begin, begin + self.batch_size)
            inputs = self._inputs(codes=codes[some], views=views[some])
            reports += self.processor.write_reports(self.model, inputs["codes"], inputs["view"], **generate)
        return reports

    def draw(
        self,
        reports: Sequence[Report],
        views: Sequence[str],
        seed: int = 0,
        guidance: float = 2.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> np.ndarray:
        """(N, h, w) codes of one radiograph a report; row i is drawn with seed + i, whatever the batch size."""

        def run(begin: int, end: int) -> Tensor:
            codes = self.model.generate(
                generation_mode="image",
                seeds=torch.arange(seed + begin, seed + end),
                guidance=guidance,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                **self._inputs(reports=reports[begin:end], views=views[begin:end]),
            )
            return codes.view(-1, *self.tokenizer.grid)

        return self._batched(len(reports), run)

    def _inputs(self, **given: Any) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in self.processor(**given).items()}

    def _batched(self, count: int, run: Callable[[int, int], Tensor]) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                run(begin, min(begin + self.batch_size, count)).cpu() for begin in range(0, count, self.batch_size)
            ]
        return torch.cat(parts).numpy()
