"""Peak FLOP/s of this machine: the denominator of MFU."""

import time
from functools import cache

import torch

# Dense bfloat16 with tensor cores, TFLOP/s, from data sheets; longer names first.
_BF16_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}
_MEASURED_SIZE = {"cuda": 8192, "cpu": 1024}


@cache
def peak_flops(precision: str) -> float:
    """Return the peak floating-point operations per second of one device.

    Args:
        precision: "bf16", or "no" for float32.

    Returns:
        The data sheet figure for bfloat16 on a known GPU; otherwise the measured rate of a large matrix product with
        the current threads. A multiply-add counts as two.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name()
        for part, tflops in _BF16_TFLOPS.items():
            if part in name:
                return tflops * 1e12
    return _measured(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def _measured(device: str, dtype: torch.dtype, rounds: int = 3) -> float:
    size = _MEASURED_SIZE[device]
    # Random values: a matrix of ones takes less power, so a GPU runs it at a clock that no training reaches.
    # Its own generator: the random numbers of a training must not depend on when its peak is measured.
    matrix = torch.randn(size, size, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(0))
    best = 0.0
    for _ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
