"""``winograd.c`` and ``group_norm.c``, compiled for this processor when first asked for, by the machine's C compiler.

The library lies in the cache (``MEDUNIFIER_CACHE``) under a name made of the source, the flags and the processor's
features, so machines of several kinds may share a home. It runs on PyTorch's own OpenMP threads: those of another
pool would wait for cores on which PyTorch's idle ones still spin. Without a compiler, or with
``MEDUNIFIER_COMPILED=0``, the same sums are made by PyTorch's operations, which takes about twice as long.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from data.shard_files import cache_folder
from shared.artifacts import atomic_file

SOURCES = tuple(Path(__file__).with_name(name) for name in ("winograd.c", "group_norm.c"))
# Not -ffast-math: a library linked with it flushes small numbers to zero in the whole process.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC")
MOST_SECONDS = 60

CHANNELS, OUTPUTS = 8, 16
"""Of these the numbers of channels must be multiples."""
ROWS = 6
PIXELS = 4096
"""Of an image, that a thread takes at a time for its norm."""


@dataclass(frozen=True)
class Kernels:
    """The library's functions; the sources say what they do."""

    winograd_f4: Callable[..., int]
    channel_sums: Callable[..., None]
    scale_shift: Callable[..., None]


@cache
def kernels() -> Kernels | None:
    """The library; None where it cannot be compiled."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("MEDUNIFIER_COMPILED") == "0" or compiler is None:
        return None
    try:
        sources = b"".join(source.read_bytes() for source in SOURCES)
        name = hashlib.sha256(sources + repr((FLAGS, compiler, _processor())).encode()).hexdigest()[:32]
        library = cache_folder() / "compiled" / f"{name}.so"
        if not library.is_file():
            with atomic_file(library) as partial:
                _compile(compiler, partial)
        # At once, not at the first call: where PyTorch has brought no OpenMP, this is the error.
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOW)
        for name, pointers, numbers, result in (
            ("winograd_f4", 5, 8, ctypes.c_int), ("channel_sums", 2, 5, None), ("scale_shift", 4, 5, None),
        ):  # fmt: skip
            function = getattr(loaded, name)
            function.argtypes = [*[ctypes.c_void_p] * pointers, *[ctypes.c_long] * numbers]
            function.restype = result
    except Exception:  # no room, no headers, an old compiler, a cache that may not be run from: slower, not wrong
        return None
    return Kernels(loaded.winograd_f4, loaded.channel_sums, loaded.scale_shift)


def _compile(compiler: str, library: Path) -> None:
    """In two steps: linked with -fopenmp the library would bring an OpenMP of its own."""
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in SOURCES]
        commands = [[*FLAGS, "-c", str(source), "-o", made] for source, made in zip(SOURCES, objects, strict=True)]
        for arguments in (*commands, ["-shared", "-o", str(library), *objects]):
            subprocess.run([compiler, *arguments], capture_output=True, check=True, timeout=MOST_SECONDS)


def _processor() -> str:
    """What ``-march=native`` depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    told = [line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))]
    return f"{platform.machine()} {platform.processor()} {sorted(set(told))}"


def panels(points: Tensor) -> Tensor:
    """(36, C, O) transformed kernel -> (36, O / 16, C, 16), as the library reads it."""
    return points.unflatten(2, (-1, OUTPUTS)).transpose(1, 2).contiguous()


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
    """(B, H, W, C) float32 -> (B, H, W, O), with as many threads as PyTorch has. Sides are multiples of 4.

    Args:
        x: contiguous.
        kernel: of :func:`panels`.
        bias: (O,).
        add: (B, H, W, O), contiguous, added to the result.
    """
    library = kernels()
    assert library is not None, "whoever makes panels has looked for it"
    batch, height, width, channels = x.shape
    outputs = kernel.shape[1] * OUTPUTS
    y = x.new_empty(batch, height, width, outputs)
    tiles = batch * (height // 4) * (width // 4)
    threads = torch.get_num_threads()
    share = -(-tiles // (threads * ROWS)) * ROWS  # of a thread, rounded up
    # Enough tiles at a time that the kernel, which is read anew for each block, is the smaller part.
    block = min(ROWS * 4 * max(1, max(channels, outputs) // 128), share)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (x, kernel, bias, add, y)]

    if library.winograd_f4(*addresses, height, width, channels, outputs, tiles, share, block, threads):
        raise MemoryError("no memory for a convolution")
    return y


def normalise(x: Tensor, out: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, swish: bool) -> None:
    """GroupNorm of (B, H, W, C) float32, and its swish if asked for, into ``out``, which may be ``x``.

    The result does not depend on the number of threads. Both are contiguous, C a multiple of 8.
    """
    library = kernels()
    assert library is not None, "the caller has looked for it"
    batch, height, width, channels = x.shape
    pixels = height * width
    threads = torch.get_num_threads()
    sums = torch.zeros(batch, -(-pixels // PIXELS), 2, channels, dtype=torch.float64)
    library.channel_sums(x.data_ptr(), sums.data_ptr(), batch, pixels, channels, PIXELS, threads)
    # Channels are joined to groups as parallel parts of a variance are (Chan et al., 1979).
    of_channel, square = (sums.sum(1) / pixels).view(batch, 2, groups, -1).unbind(1)
    variance = square - of_channel * of_channel
    of_channel = of_channel + x[:, 0, 0].double().view_as(of_channel)
    mean = of_channel.mean(2, keepdim=True)
    variance = (variance + (of_channel - mean).square()).mean(2, keepdim=True)
    scale = (variance.clamp(min=0) + epsilon).rsqrt() * weight.double().view(groups, -1)
    shift = (bias.double().view(groups, -1) - mean * scale).float()
    scale = scale.float()

    addresses = [tensor.data_ptr() for tensor in (x, out, scale, shift)]
    library.scale_shift(*addresses, batch, pixels, channels, swish, threads)
