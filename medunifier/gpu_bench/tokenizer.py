"""Measurements of stage 1: training step, step with taming's layers, encoding, decoding, ``medunifier tokenize``."""

import inspect
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from medunifier.data.shards.dataset import Sample
from medunifier.gpu_bench.measure import (
    calls_within,
    compile_seconds,
    count_flop,
    memory,
    profile,
    reset_memory,
    time_calls,
    warm_up,
)
from medunifier.gpu_bench.shards import synthetic_image
from medunifier.gpu_bench.sizes import Figures, Measurement, Setting
from medunifier.shared.config import CONFIGS, parse_config
from medunifier.stage1_tokenizer.cli import tokenize_shards
from medunifier.stage1_tokenizer.config import Stage1Config
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.pixel_range import collate_images
from medunifier.stage1_tokenizer.training.task import TokenizerTask

_BATCHES = 2
_STEP = 10  # past the ramp of the adversarial loss


def preset(name: str, batch: int, *options: str) -> Stage1Config:
    """Return a preset with random LPIPS weights (no file is needed) and the discriminator on from the first step."""
    return parse_config(
        Stage1Config,
        [
            f"--config={CONFIGS / 'stage1' / f'{name}.yaml'}",
            "--data.shards=-",
            "--run_dir=-",
            "--loss.perceptual.weights=random",
            "--loss.discriminator.train_from=0",
            "--loss.discriminator.start=1",
            "--loss.discriminator.ramp=1",
            "--loop.mixed_precision=bf16",
            f"--loop.batch_size={batch}",
            *options,
        ],
    )


def random_tokenizer(setting: Setting) -> FrozenTokenizer:
    """Return the tokenizer of ``cxr_f16`` with random weights, on the device."""
    torch.manual_seed(0)
    config = preset("cxr_f16", setting.sizes.batch, *setting.sizes.stage1)
    return FrozenTokenizer(VQGAN(config.model)).to(setting.device)


def train(setting: Setting) -> Measurement:
    """Measure the training step of ``cxr_f16``: images/s, MFU over the whole step, memory, profile."""
    sizes = setting.sizes
    config = preset("cxr_f16", sizes.batch, *sizes.stage1)
    step, flop = _training(config, setting)
    warm = warm_up(step, 2 * _BATCHES + 2, setting.device)
    yield
    return {"stage1": _step_figures(step, warm, flop, sizes.batch, setting)}


def train_taming(setting: Setting) -> Measurement:
    """Measure the training step with the layers of ``taming_f16_1024``, uncompiled as that package runs."""
    sizes = setting.sizes
    config = preset("taming_f16_1024", sizes.peer_batch, *sizes.taming)
    step, flop = _training(config, setting)
    torch.compiler.set_stance("force_eager")
    warm = warm_up(step, _BATCHES + 1, setting.device)
    yield
    return {"stage1_taming": _step_figures(step, warm, flop, sizes.peer_batch, setting)}


def _training(config: Stage1Config, setting: Setting) -> tuple[Callable[[int], Any], float]:
    """Return the step over synthetic batches in the device's memory, and its FLOP for one image."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=setting.device == "cpu", mixed_precision=config.loop.mixed_precision)
    unused: Any = SimpleNamespace()  # run folder and validation set, which a step does not use
    task = TokenizerTask(config, accelerator, unused, unused)
    batches = [
        _images(config.loop.batch_size, config.model.resolution, seed).to(accelerator.device)
        for seed in range(_BATCHES)
    ]

    def step(number: int) -> Any:
        return task.step([batches[number % _BATCHES]], _STEP + number)

    return step, count_flop(lambda: task.step([batches[0][:1]], _STEP))


def _images(count: int, size: int, seed: int = 0) -> Tensor:
    """Return (count, 1, size, size) as the loader collates them."""
    generator = np.random.default_rng(seed)
    samples = [
        (number, Sample(str(number), {}, images=(synthetic_image(size, generator),))) for number in range(count)
    ]
    return collate_images(samples, size, seed)


def _step_figures(
    step: Callable[[int], Any], warm: list[float], flop: float, batch: int, setting: Setting
) -> Figures:
    reset_memory(setting.device)
    seconds = time_calls(step, calls_within(setting.sizes.seconds, warm[-1], setting.sizes.steps), setting.device)
    details = {
        "batch": batch,
        "ms_per_step": seconds * 1e3,
        "gflop_per_image": flop / 1e9,
        "mfu": flop * batch / seconds / setting.peak,
        **memory(setting.device),
        "compile_s": compile_seconds(warm, seconds),
        "profile": profile(step, setting.device),
    }
    return Figures(batch / seconds, details)


def tokenize(setting: Setting) -> Measurement:
    """Measure encoding and decoding in the device's memory, and ``medunifier tokenize`` on shards on disk."""
    sizes, device = setting.sizes, setting.device
    tokenizer = random_tokenizer(setting)
    if torch.cuda.is_available():
        tokenizer.compile_graphs()
    folder = Path(setting.folder)
    tokenizer.save(folder / "tokenizer")
    images = _images(sizes.encode_batch, tokenizer.image_size).to(device)
    codes = tokenizer.encode_indices(images, "bf16")
    # Whether it has a precision depends on the version.
    options: dict[str, Any] = (
        {"precision": "bf16"} if "precision" in inspect.signature(tokenizer.decode_indices).parameters else {}
    )
    calls: dict[str, Callable[[int], Any]] = {
        "encode": lambda _: tokenizer.encode_indices(images, "bf16"),
        "decode": lambda _: tokenizer.decode_indices(codes, **options),
    }
    flop = {name: count_flop(partial(call, 0)) for name, call in calls.items()}
    warm = {name: warm_up(call, 3, device) for name, call in calls.items()}
    _tokenize_shards(folder, "few", 0)
    yield
    results = {}
    for name, call in calls.items():
        reset_memory(device)
        seconds = time_calls(call, calls_within(sizes.seconds, warm[name][-1], sizes.steps), device)
        details = {
            "batch": sizes.encode_batch,
            "gflop_per_image": flop[name] / sizes.encode_batch / 1e9,
            "mfu": flop[name] / seconds / setting.peak,
            **memory(device),
            "compile_s": compile_seconds(warm[name], seconds),
        }
        results[name] = Figures(sizes.encode_batch / seconds, details)
    # The difference of a long and a short run: what both spend on loading and compiling is subtracted.
    few, everything = (_tokenize_shards(folder, name, 1) for name in ("few", "all"))
    added = sizes.shard_images * (sizes.shards - sizes.few)
    results["tokenize"] = Figures(
        added / max(everything - few, 1e-9), {"images": added, "seconds": everything, "fixed_seconds_and_few": few}
    )
    return results


def _tokenize_shards(folder: Path, name: str, run: int) -> float:
    """Run ``medunifier tokenize`` in this process and return its seconds."""
    start = time.perf_counter()
    tokenize_shards.main(
        [
            f"--tokenizer={folder / 'tokenizer'}",
            f"--shards={folder / name}",
            f"--out={folder / f'{name}-codes-{run}'}",
            "--precision=bf16",
        ]
    )
    return time.perf_counter() - start
