"""The product of stage 1: a tokenizer that does not change any more, known by its fingerprint.

A folder: ``config.json``, ``model.safetensors`` (encoder, decoder and the two 1x1 convolutions, taming's key names),
``codebook.safetensors`` (the Euclidean table K x D: all that stage 2 training needs), ``README.md``.
Whatever quantiser it was trained with, here it is a table and the nearest entry.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.artifacts import FORMAT_VERSION, atomic_folder, fingerprint, read_json, write_json
from shared.config import config_to_dict
from shared.errors import UserError
from stage1_tokenizer.config import ModelConfig, model_config
from stage1_tokenizer.images import to_model
from stage1_tokenizer.quantizers import nearest_entry
from stage1_tokenizer.vqgan import VQGAN

CONFIG, WEIGHTS, CODEBOOK, CARD = "config.json", "model.safetensors", "codebook.safetensors", "README.md"


class FrozenTokenizer(nn.Module):
    """Radiographs to codes and back. Evaluation mode, no gradients.

    Args:
        model: the trained VQ-GAN; its weights are copied, its quantiser is folded to a table.
    """

    codebook: Tensor
    """(K, D) float32."""

    def __init__(self, model: VQGAN) -> None:
        super().__init__()
        self.config: ModelConfig = model.config
        self._model = VQGAN(model.config)
        self._model.load_state_dict(model.state_dict())
        self.register_buffer("codebook", model.quantize.table().detach().float().clone(), persistent=False)
        self._settle()

    def _settle(self) -> None:
        del self._model.quantize  # the table has taken its place
        self._model.float()
        self.requires_grad_(False)
        self.train(False)
        self.fingerprint: str = fingerprint(self._identity(), self._weights() | {"codebook": self.codebook})
        """SHA-256 over configuration and weights: token shards carry it, stage 2 compares it."""

    def train(self, mode: bool = True) -> "FrozenTokenizer":
        """Stays in evaluation mode."""
        return super().train(False)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "FrozenTokenizer":
        """Load a folder that :meth:`save` wrote.

        Raises:
            UserError: if it is no tokenizer's folder, or was changed since it was written.
        """
        path = Path(path)
        saved = read_json(
            path / CONFIG, "a tokenizer's folder (config.json, model.safetensors, codebook.safetensors)"
        )
        for name in (WEIGHTS, CODEBOOK):
            if not (path / name).is_file():
                raise UserError(f"{path / name} not found: {path} is not a whole tokenizer's folder")
        try:
            if saved["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path} has format version {saved['format_version']}, this medunifier reads {FORMAT_VERSION}"
                )
            model = VQGAN(model_config(saved["model"]))
            codebook = load_file(path / CODEBOOK)["codebook"]
            expected = saved["fingerprint"]
            tokenizer = cls(model)
            if codebook.shape != tokenizer.codebook.shape:
                raise UserError(f"{path / CODEBOOK} holds {tuple(codebook.shape)}, config.json says otherwise")
            tokenizer._model.load_state_dict(load_file(path / WEIGHTS), strict=True)
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read as a tokenizer: {' '.join(str(error).split())}") from None
        tokenizer.codebook.copy_(codebook)
        tokenizer.fingerprint = fingerprint(
            tokenizer._identity(), tokenizer._weights() | {"codebook": tokenizer.codebook}
        )
        if tokenizer.fingerprint != expected:
            raise UserError(
                f"{path} was changed after it was written: its fingerprint is {tokenizer.fingerprint[:12]}…, "
                f"config.json says {str(expected)[:12]}…; copy or export it again"
            )
        return tokenizer

    def save(self, path: str | Path, card: str = "") -> None:
        """Write the folder, complete or not at all.

        Args:
            path: the folder; an older tokenizer of that name is replaced.
            card: Markdown that is added to the card, such as the figures of its training.
        """
        with atomic_folder(path) as partial:
            write_json(partial / CONFIG, self._identity() | {"fingerprint": self.fingerprint})
            save_file({name: tensor.contiguous() for name, tensor in self._weights().items()}, partial / WEIGHTS)
            save_file({"codebook": self.codebook.cpu().contiguous()}, partial / CODEBOOK)
            (partial / CARD).write_text(self._card() + card, encoding="utf-8")

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return self.config.resolution

    @property
    def grid(self) -> tuple[int, int]:
        """Codes of an image: (h, w)."""
        return self.config.grid

    @property
    def codes(self) -> int:
        """Entries of the codebook, K."""
        return len(self.codebook)

    @torch.no_grad()
    def encode_indices(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) in [-1, 1] -> codes (B, h, w), int64. The lookup is float32 also under autocast."""
        z = self._model.encode(images)
        rows = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        return nearest_entry(rows, self.codebook).reshape(len(z), *z.shape[2:])

    @torch.no_grad()
    def decode_indices(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> images (B, 1, H, W), about [-1, 1], not clamped."""
        return self._model.decode(self.codebook[codes.long()].permute(0, 3, 1, 2).contiguous())

    def encode_images(self, images: Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """Arrays (H, W) uint8 or uint16 of the tokenizer's size -> codes (N, h, w), int64.

        Raises:
            ValueError: for another size or dtype.
        """
        size = (self.image_size, self.image_size)
        if wrong := [image.shape for image in images if image.shape != size]:
            raise ValueError(f"images must have {size} pixels, got {wrong[0]}")
        parts = []
        for begin in range(0, len(images), batch_size):
            batch = np.stack([to_model(image) for image in images[begin : begin + batch_size]])
            parts.append(self.encode_indices(torch.from_numpy(batch)[:, None].to(self.codebook.device)).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, *self.grid), dtype=np.int64)

    def _weights(self) -> dict[str, Tensor]:
        return dict(self._model.state_dict())

    def _identity(self) -> dict[str, Any]:
        codes, dimensions = self.codebook.shape
        return {
            "format_version": FORMAT_VERSION,
            "model": config_to_dict(self.config),
            "image_size": self.image_size,
            "grid": list(self.grid),
            "codes": codes,
            "code_dim": dimensions,
        }

    def _card(self) -> str:
        height, width = self.grid
        return f"""# A radiograph tokenizer

Turns a radiograph of {self.image_size} x {self.image_size} pixels into {height} x {width} codes out of {self.codes},
and back. Made by medunifier, stage 1; loaded by `FrozenTokenizer.from_pretrained(folder)`.

- fingerprint: `{self.fingerprint}`
- codebook: {self.codes} entries of {self.codebook.shape[1]} dimensions; the nearest by Euclidean distance is the code
- images: one channel, [-1, 1], black is -1

Research software, not a medical device: a reconstruction can lose or invent a finding.
"""


def export(model: VQGAN, path: str | Path, card: str = "") -> FrozenTokenizer:
    """Freeze ``model`` and write it to ``path``; returns what was written."""
    tokenizer = FrozenTokenizer(model)
    tokenizer.save(path, card)
    return tokenizer
