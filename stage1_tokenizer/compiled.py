"""``winograd.c``, compiled for this processor when it is first asked for, by the C compiler of this machine.

The library lies in the cache (``MEDUNIFIER_CACHE``) under a name made of the source, the flags and the processor's
features, so machines of several kinds may share a home. Without a compiler, or with ``MEDUNIFIER_COMPILED=0``, the
same sums are made by PyTorch's operations, which takes about twice as long.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from data.shard_files import cache_folder
from shared.artifacts import atomic_file

SOURCE = Path(__file__).with_name("winograd.c")
# Not -ffast-math: a library linked with it flushes small numbers to zero in the whole process.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared")
MOST_SECONDS = 60

CHANNELS, OUTPUTS = 8, 16
"""Of these the numbers of channels must be multiples."""
ROWS = 6


@cache
def winograd_library() -> Callable[..., int] | None:
    """The function ``winograd_f4``; None where it cannot be compiled."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("MEDUNIFIER_COMPILED") == "0" or compiler is None or not SOURCE.is_file():
        return None
    source = SOURCE.read_bytes()
    name = hashlib.sha256(source + repr((FLAGS, compiler, _processor())).encode()).hexdigest()[:32]
    library = cache_folder() / "compiled" / f"{name}.so"
    try:
        if not library.is_file():
            with atomic_file(library) as partial:
                command = [compiler, *FLAGS, "-o", str(partial), str(SOURCE)]
                subprocess.run(command, capture_output=True, check=True, timeout=MOST_SECONDS)
        function = ctypes.CDLL(str(library)).winograd_f4
    except Exception:  # no room, no headers, an old compiler, a cache that may not be run from: slower, not wrong
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_long
    function.argtypes = [*[pointer] * 4, *[number] * 7]
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


def _processor() -> str:
    """What ``-march=native`` depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    told = [line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))]
    return f"{platform.machine()} {platform.processor()} {sorted(set(told))}"


def panels(points: Tensor) -> Tensor:
    """(36, C, O) transformed kernel -> (36, O / 16, C, 16), as the library reads it."""
    return points.unflatten(2, (-1, OUTPUTS)).transpose(1, 2).contiguous()


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H, W, C) float32 -> (B, H, W, O), with as many threads as PyTorch has. Sides are multiples of 4.

    Args:
        x: contiguous.
        kernel: of :func:`panels`.
        bias: (O,).
    """
    library = winograd_library()
    assert library is not None, "whoever makes panels has looked for it"
    batch, height, width, channels = x.shape
    outputs = kernel.shape[1] * OUTPUTS
    y = x.new_empty(batch, height, width, outputs)
    tiles, threads = batch * (height // 4) * (width // 4), torch.get_num_threads()
    share = -(-tiles // (threads * ROWS)) * ROWS  # of a thread, rounded up
    # Enough tiles at a time that the kernel, which is read anew for each block, is the smaller part.
    block = min(ROWS * 4 * max(1, max(channels, outputs) // 128), share)
    addresses = [tensor.data_ptr() for tensor in (x, kernel)]
    addresses += [0 if bias is None else bias.data_ptr(), y.data_ptr()]

    def some(first: int) -> int:
        return library(*addresses, height, width, channels, outputs, first, min(first + share, tiles), block)

    # ctypes lets go of the interpreter's lock, so threads of Python run side by side.
    failed = sum(_threads(threads).map(some, range(0, tiles, share))) if threads > 1 else some(0)
    if failed:
        raise MemoryError("no memory for a convolution")
    return y


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="winograd")
