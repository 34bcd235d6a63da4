"""Export a frozen tokenizer as two ONNX graphs, verified with onnxruntime before they are written.

``encoder.onnx``: images (batch, channels, H, W) float32 in [-1, 1] -> codes (batch, h, w) int64.
``decoder.onnx``: codes -> images, about [-1, 1], not clamped.
``onnx.json``: tokenizer fingerprint, inputs and outputs, and the measured agreement with PyTorch.
"""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medunifier.data.phantom import Phantom
from medunifier.shared.artifacts import FORMAT_VERSION, atomic_folder, read_json, sha256_file, write_json
from medunifier.shared.errors import UserError
from medunifier.shared.report_page.notice import TOKENIZER_LIMITS, research_notice
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.pixel_range import to_model

ENCODER, DECODER, SIDECAR = "encoder.onnx", "decoder.onnx", "onnx.json"
OPSET = 18
"""Released in 2022, supported by current runtimes, and emitted by torch's exporter without conversion."""

PIXEL_TOLERANCE = 1e-3
"""Largest difference of a decoded pixel, on the scale from -1 to 1: an eighth of an 8-bit grey level."""
TIE = 1e-4
"""Two entries are nearly tied for a vector z when their squared distances differ by less than this fraction of
|z|^2 + |e|^2. A different summation order in a convolution changes a distance by about 1e-6 of that."""
_CHECK_BATCHES = (1, 3)

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class _EncoderGraph(nn.Module):
    """Map images to codes without the chunking and checks of the lookup in training."""

    table: Tensor
    bias: Tensor | None
    code: Tensor | None

    def __init__(self, tokenizer: FrozenTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        table, bias, code = tokenizer.lookup_tables()
        self.register_buffer("table", table)
        self.register_buffer("bias", bias)
        self.register_buffer("code", code)

    def forward(self, images: Tensor) -> Tensor:
        z = self.tokenizer.encode_vectors(images).permute(0, 2, 3, 1)  # (B, h, w, D)
        if self.bias is not None:
            return (z @ self.table.T + self.bias).argmax(dim=-1)
        norms = self.table.square().sum(dim=1)
        distance = z.square().sum(dim=-1, keepdim=True) + norms - 2 * (z @ self.table.T)
        nearest = distance.argmin(dim=-1)
        return nearest if self.code is None else self.code[nearest]


class _DecoderGraph(nn.Module):
    def __init__(self, tokenizer: FrozenTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        return self.tokenizer.decode_vectors(self.tokenizer.codebook[codes].permute(0, 3, 1, 2))


@dataclass(frozen=True)
class Agreement:
    """Agreement of another runtime with PyTorch."""

    codes: int
    """Number of codes compared."""
    different: int
    """Number of different codes, all of them near ties."""
    largest_pixel_difference: float
    """For images decoded from the same codes, on the scale from -1 to 1."""


def export_onnx(tokenizer: FrozenTokenizer, out: Path) -> bool:
    """Write the two graphs after verifying them with onnxruntime.

    Returns:
        False if ``out`` already contains the graphs of this tokenizer.

    Raises:
        UserError: if packages are missing, ``out`` contains something else, or the graphs give different results.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UserError(f"ONNX export needs {' and '.join(missing)}: pip install 'medunifier[onnx]'")
    if out.exists():
        if _is_done(out, tokenizer):
            return False
        raise UserError(f"{out} exists and is not an export of this tokenizer: remove it or choose another --out")
    # Channels-last is a PyTorch optimisation and must not enter the graph.
    tokenizer = tokenizer.cpu().to(memory_format=torch.contiguous_format)
    images = check_images(tokenizer)
    codes = tokenizer.encode_indices(images)
    with atomic_folder(out) as partial:
        _write_graph(_EncoderGraph(tokenizer), images[:2], ("images", "codes"), partial / ENCODER)
        _write_graph(_DecoderGraph(tokenizer), codes[:2], ("codes", "images"), partial / DECODER)
        agreement = compare(tokenizer, partial, images)
        write_json(partial / SIDECAR, _sidecar(tokenizer, partial, agreement))
        (partial / "README.md").write_text(_card(tokenizer), encoding="utf-8")
    return True


def check_images(tokenizer: FrozenTokenizer) -> Tensor:
    """Return (3, C, H, W) phantoms and noise in [-1, 1], the same at every call."""
    size = tokenizer.image_size
    phantom = Phantom(size, 0)
    grey = [to_model((phantom.study(number).images[0] * 255).astype(np.uint8)) for number in (0, 1)]
    grey.append(np.random.default_rng(0).uniform(-1, 1, (size, size)).astype(np.float32))
    return torch.from_numpy(np.stack(grey))[:, None].expand(-1, tokenizer.config.in_channels, -1, -1).contiguous()


def compare(tokenizer: FrozenTokenizer, folder: Path, images: Tensor) -> Agreement:
    """Compare codes and decoded images of onnxruntime and PyTorch, for batches of one and three.

    Codes must be equal, except for near ties (:data:`TIE`): there float32 cannot determine the nearest entry, and the
    choice depends on the order of summation, as it does between two PyTorch builds.

    Raises:
        UserError: if a code differs without a near tie, or a pixel by more than :data:`PIXEL_TOLERANCE`.
    """
    from onnxruntime import InferenceSession

    encoder, decoder = (
        InferenceSession(str(folder / name), providers=["CPUExecutionProvider"]) for name in (ENCODER, DECODER)
    )
    compared = different = 0
    largest = 0.0
    for count in dict.fromkeys(min(n, len(images)) for n in _CHECK_BATCHES):
        batch = images[:count]
        codes = tokenizer.encode_indices(batch)
        (theirs,) = encoder.run(None, {"images": batch.cpu().numpy()})
        other = torch.from_numpy(theirs)
        compared += codes.numel()
        different += int((codes != other).sum())
        if not _tied(tokenizer, batch, codes, other).all():
            raise UserError(f"onnxruntime {version('onnxruntime')} gives different codes than PyTorch: not written")
        (decoded,) = decoder.run(None, {"codes": codes.cpu().numpy()})
        largest = max(largest, float((tokenizer.decode_indices(codes) - torch.from_numpy(decoded)).abs().max()))
    if not largest <= PIXEL_TOLERANCE:
        raise UserError(f"onnxruntime's decoded images differ from PyTorch's by {largest:.1e}: not written")
    return Agreement(compared, different, largest)


def _tied(tokenizer: FrozenTokenizer, images: Tensor, codes: Tensor, other: Tensor) -> Tensor:
    """Return (B, h, w) bool: the two codes are equal, or their entries are nearly tied for the encoded vector."""
    same = codes == other
    table, bias, code = tokenizer.lookup_tables()
    if same.all() or code is not None:  # remapped: a code has many entries, so equality is required
        return same
    z = tokenizer.encode_vectors(images).permute(0, 2, 3, 1).double()
    ours, theirs = table[codes].double(), table[other].double()
    if bias is not None:
        scale = z.norm(dim=-1) * (ours.norm(dim=-1) + theirs.norm(dim=-1))
        gap = (z * (ours - theirs)).sum(dim=-1) + (bias[codes] - bias[other])
    else:
        scale = z.square().sum(dim=-1) + torch.maximum(ours.square().sum(dim=-1), theirs.square().sum(dim=-1))
        gap = (z - ours).square().sum(dim=-1) - (z - theirs).square().sum(dim=-1)
    return same | (gap.abs() <= TIE * scale)


def _write_graph(graph: nn.Module, example: Tensor, names: tuple[str, str], path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), redirect_stdout(io.StringIO()):  # the exporter prints its progress
        torch.onnx.export(
            graph.eval(),
            (example,),
            str(path),
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=({0: batch},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _sidecar(tokenizer: FrozenTokenizer, folder: Path, agreement: Agreement) -> dict[str, Any]:
    height, width = tokenizer.grid
    size = tokenizer.image_size
    channels, out_channels = tokenizer.config.in_channels, tokenizer.config.out_ch
    codes = {
        "name": "codes",
        "type": "int64",
        "shape": ["batch", height, width],
        "range": [0, tokenizer.codebook_size - 1],
    }

    def images(channels: int) -> dict[str, Any]:
        shape = ["batch", channels, size, size]
        return {"name": "images", "type": "float32", "shape": shape, "value_range": [-1.0, 1.0], "black": -1.0}

    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": tokenizer.fingerprint,
        "opset": OPSET,
        "image_size": size,
        "grid": [height, width],
        "codes": tokenizer.codebook_size,
        "value_range": [-1.0, 1.0],
        ENCODER: {"sha256": sha256_file(folder / ENCODER), "input": images(channels), "output": codes},
        DECODER: {"sha256": sha256_file(folder / DECODER), "input": codes, "output": images(out_channels)},
        "checked": {
            "onnxruntime": version("onnxruntime"),
            "torch": torch.__version__,
            "codes": agreement.codes,
            "nearly_tied_and_different": agreement.different,
            "tie": TIE,
            "largest_pixel_difference": agreement.largest_pixel_difference,
            "pixel_tolerance": PIXEL_TOLERANCE,
        },
    }


def _is_done(out: Path, tokenizer: FrozenTokenizer) -> bool:
    if not (out / SIDECAR).is_file():
        return False
    saved = read_json(out / SIDECAR, "an exported tokenizer")
    return bool(saved.get("fingerprint") == tokenizer.fingerprint) and all(
        (out / name).is_file() and sha256_file(out / name) == saved[name]["sha256"] for name in (ENCODER, DECODER)
    )


def _card(tokenizer: FrozenTokenizer) -> str:
    height, width = tokenizer.grid
    size, channels = tokenizer.image_size, tokenizer.config.in_channels
    return f"""# A radiograph tokenizer as ONNX

{research_notice(TOKENIZER_LIMITS, markdown=True)}

`{ENCODER}` encodes radiographs of {size} x {size} pixels as {height} x {width} codes from a codebook of
{tokenizer.codebook_size}, `{DECODER}` decodes codes to radiographs, in batches of any size. `{SIDECAR}` has the same
information in machine-readable form.

    import numpy as np, onnxruntime

    encoder, decoder = (onnxruntime.InferenceSession(name) for name in ("{ENCODER}", "{DECODER}"))
    images = np.zeros((1, {channels}, {size}, {size}), dtype=np.float32)  # black is -1, white is 1
    (codes,) = encoder.run(None, {{"images": images}})
    (decoded,) = decoder.run(None, {{"codes": codes}})  # about [-1, 1]: clip

Fingerprint of the tokenizer: `{tokenizer.fingerprint}`. Codes are valid only for this tokenizer.
"""
