"""A frozen tokenizer as two ONNX graphs, for runtimes without PyTorch, and checked in one before they are written.

``encoder.onnx``: images (batch, channels, H, W) float32 in [-1, 1] -> codes (batch, h, w) int64.
``decoder.onnx``: codes -> images, about [-1, 1], not clamped.
``onnx.json``: whose graphs these are, what goes in and out, and how far they were found to agree.
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
from medunifier.stage1_tokenizer.preprocessing import to_model

ENCODER, DECODER, SIDECAR = "encoder.onnx", "decoder.onnx", "onnx.json"
OPSET = 18
"""Of 2022: every runtime that is in use knows it, and it is what torch's exporter emits without conversion."""

PIXEL_TOLERANCE = 1e-3
"""Largest difference of a decoded pixel, on the scale from -1 to 1: an eighth of a grey level of 8 bits."""
TIE = 1e-4
"""Two entries are nearly tied for a vector z when their squared distances differ by less than this share of
|z|^2 + |e|^2. Another runtime sums a convolution in another order, which moves a distance by some 1e-6 of that."""
_CHECK_BATCHES = (1, 3)

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class _EncoderGraph(nn.Module):
    """Images to codes in one piece: the chunks and guards of training's lookup have no place in a graph."""

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
    """How far another runtime agrees with PyTorch."""

    codes: int
    """Codes compared."""
    different: int
    """Of them, those that came out otherwise; all of them nearly tied."""
    largest_pixel_difference: float
    """Of images decoded from the same codes, on the scale from -1 to 1."""


def export_onnx(tokenizer: FrozenTokenizer, out: Path) -> bool:
    """Write the two graphs, after onnxruntime has been found to compute the same with them.

    Returns:
        False if ``out`` holds this tokenizer's graphs already.

    Raises:
        UserError: if the packages are missing, ``out`` holds something else, or the graphs compute something else.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UserError(f"ONNX export needs {' and '.join(missing)}: pip install 'medunifier[onnx]'")
    if out.exists():
        if _is_done(out, tokenizer):
            return False
        raise UserError(f"{out} exists and is not this tokenizer's export: remove it or give another --out")
    # Channels last is for PyTorch's convolutions; a graph has its own order.
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
    """(3, C, H, W) phantoms and noise in [-1, 1], the same ones every time."""
    size = tokenizer.image_size
    phantom = Phantom(size, 0)
    grey = [to_model((phantom.study(number).images[0] * 255).astype(np.uint8)) for number in (0, 1)]
    grey.append(np.random.default_rng(0).uniform(-1, 1, (size, size)).astype(np.float32))
    return torch.from_numpy(np.stack(grey))[:, None].expand(-1, tokenizer.config.in_channels, -1, -1).contiguous()


def compare(tokenizer: FrozenTokenizer, folder: Path, images: Tensor) -> Agreement:
    """Codes and decoded images of onnxruntime beside PyTorch's, in batches of one and of all.

    Codes must be equal. The one exception is a near tie, see :data:`TIE`: there either entry is the nearest as far as
    float32 can tell, and which one is taken depends on the order of a sum (so it does between two PyTorch builds).

    Raises:
        UserError: if a code differs that is no near tie, or a pixel by more than :data:`PIXEL_TOLERANCE`.
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
        (theirs,) = encoder.run(None, {"images": batch.numpy()})
        other = torch.from_numpy(theirs)
        compared += codes.numel()
        different += int((codes != other).sum())
        if not _tied(tokenizer, batch, codes, other).all():
            raise UserError(f"onnxruntime {version('onnxruntime')} gives other codes than PyTorch: not written")
        (pictures,) = decoder.run(None, {"codes": codes.numpy()})
        largest = max(largest, float((tokenizer.decode_indices(codes) - torch.from_numpy(pictures)).abs().max()))
    if not largest <= PIXEL_TOLERANCE:
        raise UserError(f"onnxruntime's decoded images differ from PyTorch's by {largest:.1e}: not written")
    return Agreement(compared, different, largest)


def _tied(tokenizer: FrozenTokenizer, images: Tensor, codes: Tensor, other: Tensor) -> Tensor:
    """(B, h, w) bool: the two codes are equal, or the vector lies as near to one's entry as to the other's."""
    same = codes == other
    table, bias, code = tokenizer.lookup_tables()
    if same.all() or code is not None:  # remapped: a code has many entries, so equality is asked for
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
    with torch.no_grad(), redirect_stdout(io.StringIO()):  # it reports its steps there
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

`{ENCODER}` turns radiographs of {size} x {size} pixels into {height} x {width} codes of {tokenizer.codebook_size},
`{DECODER}` turns codes into radiographs. Any number of them at once. `{SIDECAR}` says all of it for programs.

    import numpy as np, onnxruntime

    encoder, decoder = (onnxruntime.InferenceSession(name) for name in ("{ENCODER}", "{DECODER}"))
    images = np.zeros((1, {channels}, {size}, {size}), dtype=np.float32)  # black is -1, white is 1
    (codes,) = encoder.run(None, {{"images": images}})
    (decoded,) = decoder.run(None, {{"codes": codes}})  # about [-1, 1]: clip it

Fingerprint of the tokenizer: `{tokenizer.fingerprint}`. Codes go with this tokenizer and no other.
"""
