"""Rates, memory and profiles of both stages on one GPU, with targets, in at most four minutes.

Random weights and synthetic data; nothing is downloaded. The peers run on the same card in the same run: taming's
layers, the stock Qwen3 decoder, stock ``generate()``. A row that fails states why, and the others run. The parts are
in ``medunifier/gpu_bench/``.
"""

from medunifier.gpu_bench.command import GpuConfig as Config
from medunifier.gpu_bench.command import run

__all__ = ["Config", "run"]
