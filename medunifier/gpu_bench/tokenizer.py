"""Measurements of stage 1: training step, step with taming's layers, encoding, decoding, ``medunifier tokenize``."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from medunifier.data.shards.dataset import MANIFEST, Sample, encode_info, encode_png, shard_name, write_shard
from medunifier.gpu_bench.measure import Warm, Work, count_flop, measure, warm_up
from medunifier.gpu_bench.sizes import Figures, Measurement, Setting
from medunifier.shared.artifacts import FORMAT_VERSION, write_json
from medunifier.shared.config import CONFIGS, parse_config
from medunifier.shared.training.config import use_compile
from medunifier.stage1_tokenizer.cli import tokenize_shards
from medunifier.stage1_tokenizer.config import Stage1Config
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.pixel_range import collate_images
from medunifier.stage1_tokenizer.training.task import TokenizerTask

_BATCHES = 2
_STEP = 10  # past the ramp of the adversarial loss
_COARSE = 16


def preset(name: str, batch: int, *options: str) -> Stage1Config:
    """Return a preset with random LPIPS weights (no file is needed) and the discriminator on from the first step."""
    always = (
        "--data.shards=-", "--run_dir=-", "--loss.perceptual.weights=random", "--loss.discriminator.train_from=0",
        "--loss.discriminator.start=1", "--loss.discriminator.ramp=1", "--loop.mixed_precision=bf16",
    )  # fmt: skip
    path = CONFIGS / "stage1" / f"{name}.yaml"
    return parse_config(Stage1Config, [f"--config={path}", f"--loop.batch_size={batch}", *always, *options])


def random_tokenizer(setting: Setting) -> FrozenTokenizer:
    """Return the tokenizer of ``cxr_f16`` with random weights, on the device."""
    torch.manual_seed(0)
    config = preset("cxr_f16", setting.sizes.batch, *setting.sizes.stage1)
    return FrozenTokenizer(VQGAN(config.model)).to(setting.device)


def train(setting: Setting) -> Measurement:
    """Measure the training step of ``cxr_f16``: images/s, MFU over the whole step, memory, profile."""
    options = *setting.sizes.stage1, f"--compile={str(setting.compile).lower()}"
    return _training("stage1", preset("cxr_f16", setting.sizes.batch, *options), setting)


def train_taming(setting: Setting) -> Measurement:
    """Measure the training step with the layers of ``taming_f16_1024``, uncompiled as that package runs."""
    options = *setting.sizes.taming, "--compile=false"
    return _training("stage1_taming", preset("taming_f16_1024", setting.sizes.peer_batch, *options), setting)


def _training(row: str, config: Stage1Config, setting: Setting) -> Measurement:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=setting.device == "cpu", mixed_precision=config.loop.mixed_precision)
    unused: Any = SimpleNamespace()  # run folder and validation set, which a step does not use
    task, batch = TokenizerTask(config, accelerator, unused, unused), config.loop.batch_size
    batches = [_images(batch, config.model.resolution, seed).to(accelerator.device) for seed in range(_BATCHES)]
    flop = batch * count_flop(lambda: task.step([batches[0][:1]], _STEP))

    def step(number: int) -> Any:
        return task.step([batches[number % _BATCHES]], _STEP + number)

    warm = warm_up(step, 2 * _BATCHES, setting.device)
    yield
    seconds, details = measure(step, warm, setting, profiled=True)
    details |= {"batch": batch, "gflop_per_image": flop / batch / 1e9, "mfu": flop / seconds / setting.peak}
    return {row: Figures(batch / seconds, details)}


def _images(count: int, size: int, seed: int = 0) -> Tensor:
    """Return (count, 1, size, size) as the loader collates them."""
    generator = np.random.default_rng(seed)
    samples = [(n, Sample(str(n), {}, images=(synthetic_image(size, generator),))) for n in range(count)]
    return collate_images(samples, size, seed)


def synthetic_image(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return (size, size) uint8: smooth shapes with sensor noise. As PNG it is about as large as a radiograph."""
    coarse = Image.fromarray(generator.integers(0, 256, (_COARSE, _COARSE), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.int16)
    noise = generator.integers(-2, 3, (size, size), dtype=np.int16)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def tokenize(setting: Setting) -> Measurement:
    """Measure ``medunifier tokenize`` on shards on disk, and encoding and decoding in the device's memory."""
    sizes, device, folder = setting.sizes, setting.device, Path(setting.folder)
    tokenizer = random_tokenizer(setting)
    tokenizer.save(folder / "tokenizer")
    write_shards(folder / "images", sizes.shards, sizes.shard_images, sizes.shard_size)
    command = warm_up(partial(_tokenize_shards, setting), 1, device)  # first, so that it compiles by itself
    # As that command builds it.
    if use_compile(setting.compile, device):
        tokenizer.compile_graphs()
        torch.backends.cudnn.benchmark = True
        torch._dynamo.reset()  # graphs of the command would be used again, and not counted
    images = _images(sizes.encode_batch, tokenizer.image_size).to(device)
    codes = torch.randint(0, tokenizer.codebook_size, (len(images), *tokenizer.grid), device=device)
    calls: dict[str, Work] = {
        "encode": lambda _: tokenizer.encode_indices(images, "bf16"),
        "decode": lambda _: tokenizer.decode_indices(codes, "bf16"),
    }
    flop = {name: count_flop(partial(call, 0)) for name, call in calls.items()}
    warm = {name: warm_up(call, 3, device) for name, call in calls.items()}
    yield
    results = {}
    for name, call in calls.items():
        seconds, details = measure(call, warm[name], setting)
        details |= {"batch": len(images), "mfu": flop[name] / seconds / setting.peak}
        results[name] = Figures(len(images) / seconds, details)
    results["tokenize"] = _tokenize_figures(_tokenize_shards(setting, 1), command, setting)
    return results


def _tokenize_shards(setting: Setting, run: int) -> Path:
    """Run ``medunifier tokenize`` in this process and return its output folder."""
    folder = Path(setting.folder)
    out, options = folder / f"codes-{run}", ("--precision=bf16", f"--compile={str(setting.compile).lower()}")
    places = f"--tokenizer={folder / 'tokenizer'}", f"--shards={folder / 'images'}", f"--out={out}"
    tokenize_shards.main([*places, f"--batch_size={setting.sizes.encode_batch}", *options])
    return out


def _tokenize_figures(out: Path, command: Warm, setting: Setting) -> Figures:
    """Return the images per second between the completion of the first and of the last shard.

    Imports, loading, starting of the processes and compilation end before the first one.
    """
    times = [(out / shard_name("train", number)).stat().st_mtime_ns for number in range(setting.sizes.shards)]
    images, seconds = setting.sizes.shard_images * (len(times) - 1), (times[-1] - times[0]) / 1e9
    details = {"batch": setting.sizes.encode_batch, "images": images, "seconds": seconds}
    return Figures(images / max(seconds, 1e-9), details | {"graphs": command.graphs})


def write_shards(folder: Path, shards: int, images: int, size: int) -> None:
    """Write image shards of studies with one image each; all shards have the same images."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    pixels = [encode_png(synthetic_image(size, generator)) for _ in range(images)]
    rows = {}
    for number in range(shards):
        samples = []
        for study, png in enumerate(pixels):
            key = f"{number:04d}{study:06d}"
            info = {"study_id": key, "patient_id": key, "views": ["PA"], "report": {"findings": "synthetic"}}
            samples.append((key, {"0.png": png, "json": encode_info(info)}))
        name = shard_name("train", number)
        rows[name] = write_shard(folder / name, samples)
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, "splits": {"train": rows}})
