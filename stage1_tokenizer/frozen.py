"""The frozen tokenizer that stage 1 exports, identified by its fingerprint.

Its folder holds ``config.json``, ``model.safetensors`` (encoder, decoder and the two 1x1 convolutions under taming's
key names), ``codebook.safetensors`` (the K x D codebook, all that stage 2 training needs) and ``README.md``.
Every quantizer is reduced to a codebook and a Euclidean nearest-entry lookup, except the Gumbel quantizer: it keeps
its linear layer, since its code is the largest logit.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medunifier.shared.artifacts import FORMAT_VERSION, atomic_folder, fingerprint, read_json, write_json
from medunifier.shared.config import config_to_dict
from medunifier.shared.errors import UserError
from medunifier.shared.files.weights import check_weight_file
from medunifier.shared.hub import PushFolder
from medunifier.shared.report_page.notice import TOKENIZER_LIMITS, research_notice
from medunifier.shared.training.precision import Precision, autocast
from medunifier.stage1_tokenizer.config import ModelConfig, QuantizerConfig, model_config
from medunifier.stage1_tokenizer.model.compiling import compile_method
from medunifier.stage1_tokenizer.model.quantizers import largest_logit, nearest_entry
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.pixel_range import to_model
from medunifier.stage1_tokenizer.taming import model_shapes

CONFIG, WEIGHTS, CODEBOOK, CARD = "config.json", "model.safetensors", "codebook.safetensors", "README.md"

IMAGE_TOKENIZER, RUN_TOKENIZER = "image_tokenizer", "tokenizer"
"""The tokenizer's folder within a stage-2 model folder, and within a stage-1 run folder."""

LATER_SETTINGS = ("decay", "kl_weight", "temperature_start", "temperature_end", "temperature_steps")
"""Quantizer settings added after the first tokenizers were exported. At their defaults they are omitted from
``config.json``, so that the fingerprints of those tokenizers stay valid."""

_OLD_KINDS = ("classic", "unit_norm", "moving_average", "gumbel")
"""Quantizer kinds of older versions, whose tokenizers cannot be read any more."""


def tokenizer_folder(path: str | Path) -> Path:
    """Return the folder of the tokenizer at ``path``: itself, or that in a model or stage-1 run folder."""
    inside = (Path(path) / name for name in (IMAGE_TOKENIZER, RUN_TOKENIZER))
    if (Path(path) / CODEBOOK).is_file():
        return Path(path)
    return next((folder for folder in inside if (folder / CODEBOOK).is_file()), Path(path))


class FrozenTokenizer(nn.Module, PushFolder):
    """Encode radiographs to codes and decode codes to radiographs. Always in evaluation mode, without gradients.

    Args:
        model: the trained VQ-GAN; its weights are copied, and its quantizer is reduced to a codebook.
        remap: for a taming model whose codes are remapped to a subset of its entries: all entries of the
            nearest-entry lookup, (E, D) float32, and the code of each, (E,) int64.
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
        self.register_buffer("codebook", model.quantize.codebook().detach().float().clone(), persistent=False)
        entries, code = (None, None) if remap is None else (remap[0].float().clone(), remap[1].clone())
        self.register_buffer("_entries", entries, persistent=False)
        self.register_buffer("_code_of_entry", code, persistent=False)
        # The codebook replaces the quantizer.
        if self.config.quantizer.kind == "gumbel_vq":
            proj = self._model.quantize.get_submodule("proj")
            self._model.quantize = nn.ModuleDict({"proj": proj})  # type: ignore[assignment]
        else:
            del self._model.quantize
        # On a CPU, convolutions are up to 1.5 times as fast in channels-last memory format.
        self._model.float().to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.train(False)
        self._take_fingerprint()

    def _take_fingerprint(self) -> None:
        self.fingerprint: str = fingerprint(self._identity(), self._weights() | {"codebook": self.codebook})
        """SHA-256 of configuration and weights. Token shards record it, and stage 2 compares it."""

    def train(self, mode: bool = True) -> "FrozenTokenizer":
        """Ignore ``mode`` and stay in evaluation mode."""
        return super().train(False)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "FrozenTokenizer":
        """Load a tokenizer that was written by :meth:`save`, also from a model folder or run folder that contains it.

        Raises:
            UserError: if the folder is not a tokenizer, was written by an older version, or was modified.
        """
        path = tokenizer_folder(path)
        saved = read_json(path / CONFIG, "a tokenizer folder (config.json, model.safetensors, codebook.safetensors)")
        for name in (WEIGHTS, CODEBOOK):
            if not (path / name).is_file():
                raise UserError(f"{path / name} not found: {path} is not a complete tokenizer folder")
            check_weight_file(path / name)
        try:
            if saved["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path} has format version {saved['format_version']}, this medunifier reads {FORMAT_VERSION}"
                )
            _refuse_older_version(path, saved)
            config = model_config(saved["model"])
            _check_shapes(path, config)
            model = VQGAN(config)
            codebook = load_file(path / CODEBOOK)["codebook"]
            weights = load_file(path / WEIGHTS)
            expected = saved["fingerprint"]
            remap = (weights.pop("remap.entries"), weights.pop("remap.code")) if "remapped_entries" in saved else None
            tokenizer = cls(model, remap)
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
                f"but config.json specifies {str(expected)[:12]}…; copy or export it again"
            )
        return tokenizer

    def save(self, path: str | Path, card: str = "", write_extra: Callable[[Path], None] | None = None) -> None:
        """Write the folder atomically.

        Args:
            path: the folder; an existing tokenizer is replaced.
            card: Markdown appended to the model card, such as validation metrics.
            write_extra: writes additional files, which are not part of the tokenizer, into the folder it is passed.
        """
        with atomic_folder(path) as partial:
            write_json(partial / CONFIG, self._identity() | {"fingerprint": self.fingerprint})
            save_file({name: tensor.contiguous() for name, tensor in self._weights().items()}, partial / WEIGHTS)
            save_file({"codebook": self.codebook.cpu().contiguous()}, partial / CODEBOOK)
            (partial / CARD).write_text(self._card() + card, encoding="utf-8")
            if write_extra is not None:
                write_extra(partial)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Call :meth:`save`; the name that `push_to_hub` expects."""
        self.save(folder)

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return self.config.resolution

    @property
    def grid(self) -> tuple[int, int]:
        """Code grid of an image: (h, w)."""
        return self.config.grid

    @property
    def codebook_size(self) -> int:
        """Number of codebook entries, K."""
        return len(self.codebook)

    @torch.no_grad()
    def encode_indices(self, images: Tensor, precision: Precision = "float32") -> Tensor:
        """Encode images to codes.

        Args:
            images: (B, 1, H, W) in [-1, 1]; a three-channel model accepts (B, 3, H, W), and repeats a grey image.
            precision: of the encoder; ``auto`` is bf16 if the device supports it in hardware. The lookup is float32.

        Returns:
            (B, h, w) int64.
        """
        with autocast(images.device, precision):
            z = self.encode_vectors(images)
        vectors = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # (B * h * w, D)
        table, bias, code = self.lookup_tables()
        codes = nearest_entry(vectors, table) if bias is None else largest_logit(vectors, table, bias)
        return (codes if code is None else code[codes]).reshape(len(z), *z.shape[2:])

    @torch.no_grad()
    def decode_indices(self, codes: Tensor, precision: Precision = "float32") -> Tensor:
        """Decode codes to images.

        Args:
            codes: (B, h, w) integers.
            precision: of the decoder, as in :meth:`encode_indices`.

        Returns:
            (B, out_ch, H, W) float32, about [-1, 1], not clamped.
        """
        z_q = self.codebook[codes.long()].permute(0, 3, 1, 2).contiguous()
        with autocast(codes.device, precision):
            return self.decode_vectors(z_q).float()

    def compile_graphs(self) -> None:
        """Compile encoder and decoder, one graph each for every batch size (and precision): use few batch sizes."""
        compile_method(self._model, "encode")
        compile_method(self._model, "decode")

    def encode_vectors(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) in [-1, 1] -> encoder outputs (B, D, h, w), before the lookup."""
        return self._model.encode(images)

    def decode_vectors(self, z_q: Tensor) -> Tensor:
        """(B, D, h, w) codebook entries -> images (B, 1, H, W), about [-1, 1]."""
        return self._model.decode(z_q)

    def lookup_tables(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the tensors of the lookup.

        Returns:
            The table (E, D); a bias (E,) if the code is the largest of the logits ``table @ vector + bias`` (Gumbel),
            None if it is the nearest entry; and the code (E,) of each table row, None if it is the row index.
        """
        if self.config.quantizer.kind == "gumbel_vq":
            proj: Any = self._model.quantize.get_submodule("proj")
            return proj.weight.flatten(1), proj.bias, None
        return (self.codebook, None, None) if self._entries is None else (self._entries, None, self._code_of_entry)

    def encode_images(
        self, images: Sequence[np.ndarray], batch_size: int = 32, precision: Precision = "auto"
    ) -> np.ndarray:
        """Encode N arrays (H, W), uint8 or uint16, of the tokenizer's image size to codes (N, h, w), int64.

        ``precision`` as in :meth:`encode_indices`.

        Raises:
            ValueError: if an array has another size or dtype.
        """
        size = (self.image_size, self.image_size)
        if wrong := [image.shape for image in images if image.shape != size]:
            raise ValueError(f"images must have {size} pixels, got {wrong[0]}")
        batches = []
        for begin in range(0, len(images), batch_size):
            batch = np.stack([to_model(image) for image in images[begin : begin + batch_size]])
            codes = self.encode_indices(torch.from_numpy(batch)[:, None].to(self.codebook.device), precision)
            batches.append(codes.cpu().numpy())
        return np.concatenate(batches) if batches else np.zeros((0, *self.grid), dtype=np.int64)

    def state_dict_of_model(self) -> dict[str, Tensor]:
        """Return the state dict of encoder, decoder and the 1x1 convolutions, under taming's key names."""
        return dict(self._model.state_dict())

    def _weights(self) -> dict[str, Tensor]:
        weights = self.state_dict_of_model()
        if self._entries is not None and self._code_of_entry is not None:
            weights |= {"remap.entries": self._entries, "remap.code": self._code_of_entry}
        return weights

    def _identity(self) -> dict[str, Any]:
        codebook_size, dim = self.codebook.shape
        model, default = config_to_dict(self.config), QuantizerConfig()
        for name in LATER_SETTINGS:
            if model["quantizer"][name] == getattr(default, name):
                del model["quantizer"][name]
        identity = {
            "format_version": FORMAT_VERSION,
            "model": model,
            "image_size": self.image_size,
            "grid": list(self.grid),
            "codebook_size": codebook_size,
            "code_dim": dim,
        }
        return identity if self._entries is None else identity | {"remapped_entries": len(self._entries)}

    def _card(self) -> str:
        height, width = self.grid
        rule = "the code is the nearest entry by Euclidean distance"
        if self.config.quantizer.kind == "gumbel_vq":
            rule = "the code is the largest output of the linear layer `quantize.proj`"
        return f"""# A radiograph tokenizer

Encodes a radiograph of {self.image_size} x {self.image_size} pixels as {height} x {width} codes out of
{self.codebook_size}, and decodes codes to a radiograph. Trained by medunifier, stage 1; load it with
`FrozenTokenizer.from_pretrained(folder)`.

- fingerprint: `{self.fingerprint}`
- codebook: {self.codebook_size} entries of dimension {self.codebook.shape[1]}; {rule}
- images: {self.config.in_channels} channel(s), pixel values in [-1, 1], black is -1

{research_notice(TOKENIZER_LIMITS)}
"""


def _check_shapes(path: Path, config: ModelConfig) -> None:
    """Compare the weights' shapes with the configuration's before a model of those sizes is allocated.

    Raises:
        UserError: if they differ, or the configuration has more layers than there are weights.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name in (WEIGHTS, CODEBOOK):
        with safe_open(path / name, "pt") as file:
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    if len(config.ch_mult) * config.num_res_blocks > len(shapes):
        raise UserError(
            f"{path / CONFIG} specifies more layers than {path / WEIGHTS} has weights: copy the folder again"
        )
    expected: dict[str, tuple[int, ...]] = {"codebook": (config.n_embed, config.embed_dim)}
    # The quantizer's own tensors have the codebook's size; they are not saved.
    expected |= {k: v for k, v in model_shapes(config).items() if k in shapes or not k.startswith("quantize.")}
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise UserError(
                f"{path}: {name} has shape {shapes.get(name)}, but {CONFIG} specifies {shape}: copy the folder again"
            )


def _refuse_older_version(path: Path, saved: dict[str, Any]) -> None:
    kind = saved["model"]["quantizer"]["kind"]
    if kind in _OLD_KINDS or "codes" in saved:
        found = f"quantizer kind {kind}" if kind in _OLD_KINDS else "key `codes`"
        raise UserError(
            f"{path} was written by an older version of medunifier ({found} in {CONFIG}) and cannot be read: "
            "export the tokenizer again, or train it again"
        )


def export(model: VQGAN, path: str | Path, card: str = "") -> FrozenTokenizer:
    """Freeze ``model``, write it to ``path`` and return it."""
    tokenizer = FrozenTokenizer(model)
    tokenizer.save(path, card)
    return tokenizer
