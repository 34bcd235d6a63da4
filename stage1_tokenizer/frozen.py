"""The product of stage 1: a tokenizer that does not change any more, known by its fingerprint.

A folder: ``config.json``, ``model.safetensors`` (encoder, decoder and the two 1x1 convolutions, taming's key names),
``codebook.safetensors`` (the Euclidean table K x D: all that stage 2 training needs), ``README.md``.
Whatever quantiser it was trained with, here it is a table and the nearest entry; a Gumbel quantiser keeps its
linear layer beside the table, since the code is its largest output.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medunifier.shared.artifacts import FORMAT_VERSION, atomic_folder, fingerprint, read_json, write_json
from medunifier.shared.config import config_to_dict
from medunifier.shared.errors import UserError
from medunifier.shared.hub import PushFolder
from medunifier.shared.report_page.notice import TOKENIZER_LIMITS, research_notice
from medunifier.shared.training.precision import Precision, autocast
from medunifier.stage1_tokenizer.config import ModelConfig, QuantizerConfig, model_config
from medunifier.stage1_tokenizer.model.quantizers import largest_logit, nearest_entry
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.preprocessing import to_model

CONFIG, WEIGHTS, CODEBOOK, CARD = "config.json", "model.safetensors", "codebook.safetensors", "README.md"

LATER_SETTINGS = ("decay", "kl_weight", "temperature_start", "temperature_end", "temperature_steps")
"""Settings of a quantiser that came after the first tokenizers were written; at their defaults they are left out of
the identity, so that those keep their fingerprints."""


class FrozenTokenizer(nn.Module, PushFolder):
    """Radiographs to codes and back. Evaluation mode, no gradients.

    Args:
        model: the trained VQ-GAN; its weights are copied, its quantiser is folded to a table.
        remap: for a taming model that is remapped to some of its entries: all entries among which the nearest is
            looked for, (E, D) float32, and the code that stands for each, (E,) int64.
    """

    codebook: Tensor
    """(K, D) float32."""
    _entries: Tensor | None
    _code_of_entry: Tensor | None

    def __init__(self, model: VQGAN, remap: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.config: ModelConfig = model.config
        self._model = VQGAN(model.config)
        self._model.load_state_dict(model.state_dict())
        self.register_buffer("codebook", model.quantize.table().detach().float().clone(), persistent=False)
        entries, code = (None, None) if remap is None else (remap[0].float().clone(), remap[1].clone())
        self.register_buffer("_entries", entries, persistent=False)
        self.register_buffer("_code_of_entry", code, persistent=False)
        # The table has taken the quantiser's place.
        if self.config.quantizer.kind == "gumbel_vq":
            proj = self._model.quantize.get_submodule("proj")
            self._model.quantize = nn.ModuleDict({"proj": proj})  # type: ignore[assignment]
        else:
            del self._model.quantize
        # Convolutions on a CPU are up to half as fast again with the channels last in memory.
        self._model.float().to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.train(False)
        self._take_fingerprint()

    def _take_fingerprint(self) -> None:
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
            weights = load_file(path / WEIGHTS)
            expected = saved["fingerprint"]
            remap = (weights.pop("remap.entries"), weights.pop("remap.code")) if "remapped_entries" in saved else None
            tokenizer = cls(model, remap)
            if codebook.shape != tokenizer.codebook.shape:
                raise UserError(f"{path / CODEBOOK} holds {tuple(codebook.shape)}, config.json says otherwise")
            tokenizer._model.load_state_dict(weights, strict=True)
        except UserError:
            raise
        except Exception as error:  # of a damaged file: SafetensorError, RuntimeError, KeyError, ZeroDivisionError, …
            raise UserError(f"{path} cannot be read as a tokenizer: {' '.join(str(error).split())}") from None
        tokenizer.codebook.copy_(codebook)
        tokenizer._take_fingerprint()
        if tokenizer.fingerprint != expected:
            raise UserError(
                f"{path} was changed after it was written: its fingerprint is {tokenizer.fingerprint[:12]}…, "
                f"config.json says {str(expected)[:12]}…; copy or export it again"
            )
        return tokenizer

    def save(self, path: str | Path, card: str = "", also: Callable[[Path], None] | None = None) -> None:
        """Write the folder, complete or not at all.

        Args:
            path: the folder; an older tokenizer of that name is replaced.
            card: Markdown that is added to the card, such as the figures of its training.
            also: writes further files into the folder, which are no part of the tokenizer.
        """
        with atomic_folder(path) as partial:
            write_json(partial / CONFIG, self._identity() | {"fingerprint": self.fingerprint})
            save_file({name: tensor.contiguous() for name, tensor in self._weights().items()}, partial / WEIGHTS)
            save_file({"codebook": self.codebook.cpu().contiguous()}, partial / CODEBOOK)
            (partial / CARD).write_text(self._card() + card, encoding="utf-8")
            if also is not None:
                also(partial)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """:meth:`save`, by the name that `push_to_hub` knows."""
        self.save(folder)

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return self.config.resolution

    @property
    def grid(self) -> tuple[int, int]:
        """Codes of an image: (h, w)."""
        return self.config.grid

    @property
    def codebook_size(self) -> int:
        """Entries of the codebook, K."""
        return len(self.codebook)

    @torch.no_grad()
    def encode_indices(self, images: Tensor, precision: Precision = "float32") -> Tensor:
        """Encode images to codes.

        Args:
            images: (B, 1, H, W) in [-1, 1]; a model of three channels takes (B, 3, H, W) as it is, and repeats grey.
            precision: of the encoder; ``auto`` is bf16 where the device has units for it. The lookup is float32.

        Returns:
            (B, h, w) int64.
        """
        with autocast(images.device, precision):
            z = self.encode_vectors(images)
        rows = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        table, bias, code = self.lookup_tables()
        codes = nearest_entry(rows, table) if bias is None else largest_logit(rows, table, bias)
        return (codes if code is None else code[codes]).reshape(len(z), *z.shape[2:])

    @torch.no_grad()
    def decode_indices(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> images (B, 1, H, W), about [-1, 1], not clamped; three channels if the model has."""
        return self.decode_vectors(self.codebook[codes.long()].permute(0, 3, 1, 2).contiguous())

    def encode_vectors(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) in [-1, 1] -> the encoder's vectors (B, D, h, w), before the lookup."""
        return self._model.encode(images)

    def decode_vectors(self, z_q: Tensor) -> Tensor:
        """(B, D, h, w) entries -> images (B, 1, H, W), about [-1, 1]."""
        return self._model.decode(z_q)

    def lookup_tables(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What a vector is compared with: a table (E, D); a bias (E,) if the code is the row of the largest linear
        output and not the nearest row; and (E,) the code of each row, where it is not the row's number."""
        if self.config.quantizer.kind == "gumbel_vq":
            proj: Any = self._model.quantize.get_submodule("proj")
            return proj.weight.flatten(1), proj.bias, None
        return (self.codebook, None, None) if self._entries is None else (self._entries, None, self._code_of_entry)

    def encode_images(
        self, images: Sequence[np.ndarray], batch_size: int = 32, precision: Precision = "auto"
    ) -> np.ndarray:
        """Encode arrays (H, W), uint8 or uint16, of the tokenizer's size to codes (N, h, w), int64.

        ``precision`` is that of :meth:`encode_indices`.

        Raises:
            ValueError: for another size or dtype.
        """
        size = (self.image_size, self.image_size)
        if wrong := [image.shape for image in images if image.shape != size]:
            raise ValueError(f"images must have {size} pixels, got {wrong[0]}")
        parts = []
        for begin in range(0, len(images), batch_size):
            batch = np.stack([to_model(image) for image in images[begin : begin + batch_size]])
            codes = self.encode_indices(torch.from_numpy(batch)[:, None].to(self.codebook.device), precision)
            parts.append(codes.cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, *self.grid), dtype=np.int64)

    def state_dict_of_model(self) -> dict[str, Tensor]:
        """Encoder, decoder and the convolutions between them and the codebook, under taming's names."""
        return dict(self._model.state_dict())

    def _weights(self) -> dict[str, Tensor]:
        weights = self.state_dict_of_model()
        if self._entries is not None and self._code_of_entry is not None:
            weights |= {"remap.entries": self._entries, "remap.code": self._code_of_entry}
        return weights

    def _identity(self) -> dict[str, Any]:
        codes, dimensions = self.codebook.shape
        model, default = config_to_dict(self.config), QuantizerConfig()
        for name in LATER_SETTINGS:
            if model["quantizer"][name] == getattr(default, name):
                del model["quantizer"][name]
        identity = {
            "format_version": FORMAT_VERSION,
            "model": model,
            "image_size": self.image_size,
            "grid": list(self.grid),
            "codebook_size": codes,
            "code_dim": dimensions,
        }
        return identity if self._entries is None else identity | {"remapped_entries": len(self._entries)}

    def _card(self) -> str:
        height, width = self.grid
        rule = "the nearest by Euclidean distance is the code"
        if self.config.quantizer.kind == "gumbel_vq":
            rule = "the largest output of the linear layer `quantize.proj` is the code"
        return f"""# A radiograph tokenizer

Turns a radiograph of {self.image_size} x {self.image_size} pixels into {height} x {width} codes out of {self.codebook_size},
and back. Made by medunifier, stage 1; loaded by `FrozenTokenizer.from_pretrained(folder)`.

- fingerprint: `{self.fingerprint}`
- codebook: {self.codebook_size} entries of {self.codebook.shape[1]} dimensions; {rule}
- images: {self.config.in_channels} channel(s), [-1, 1], black is -1

{research_notice(TOKENIZER_LIMITS)}
"""


def export(model: VQGAN, path: str | Path, card: str = "") -> FrozenTokenizer:
    """Freeze ``model`` and write it to ``path``; returns what was written."""
    tokenizer = FrozenTokenizer(model)
    tokenizer.save(path, card)
    return tokenizer
