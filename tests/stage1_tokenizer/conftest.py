"""Fixtures: small image shards, and a minimal VQ-GAN configuration."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from medunifier.data.shards.dataset import MANIFEST, encode_info, encode_png, shard_name, write_shard
from medunifier.shared.artifacts import FORMAT_VERSION, write_json

SIZE = 32

TINY = {
    "resolution": SIZE,
    "ch": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "z_channels": 8,
    "n_embed": 32,
    "embed_dim": 4,
    "norm_groups": 4,
    "quantizer": {"kind": "cosine_vq", "dead_code_interval": 2},
    "front_end": "haar",
    "front_end_levels": 1,
}

TINY_TOKENIZER = {name: value for name, value in TINY.items() if name != "quantizer"}
"""The same model with the default quantizer."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def blobs(number: int, size: int = SIZE) -> np.ndarray:
    """Return a smooth grey image (size, size), uint8, seeded by ``number``."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:size, :size] / size
    image = np.zeros((size, size))
    for _ in range(4):
        a, b, width = rng.random(3)
        image += np.exp(-((x - a) ** 2 + (y - b) ** 2) / (0.02 + 0.1 * width))
    return (255 * image / image.max()).astype(np.uint8)


def batch_of_blobs(count: int = 2, size: int = SIZE) -> torch.Tensor:
    """Return (count, 1, size, size) in [-1, 1]."""
    return torch.stack([torch.from_numpy(blobs(number, size)) for number in range(count)])[:, None] / 127.5 - 1


def tiny_task(kind: str = "cosine_vq", semantic=None, balance=None, **settings):
    """Return a training task on a CPU, with perceptual loss, and the adversarial loss from the second step on."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from medunifier.shared.training.config import LoopConfig, OptimConfig
    from medunifier.stage1_tokenizer import config as stage1
    from medunifier.stage1_tokenizer.training.task import TokenizerTask

    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    adversary = stage1.DiscriminatorConfig(width=8, layers=1, start=1, ramp=1, lecam_weight=0.1)
    perceptual = stage1.PerceptualConfig("squeeze", "random")
    quantizer = {"kind": kind, "dead_code_interval": 2, "dead_code_threshold": 0.9}
    config = stage1.Stage1Config(
        stage1.DataConfig("unused"),
        "unused",
        model=stage1.model_config(TINY | {"quantizer": quantizer}),
        loss=stage1.LossConfig(
            perceptual=perceptual,
            l2_weight=1.0,
            gan_weight=0.5,
            discriminator=adversary,
            semantic=semantic or stage1.SemanticConfig(),
        ),
        # So low that rounding, which the optimizer amplifies where a gradient is nearly zero, does not add up.
        optim=OptimConfig(lr=1e-7, betas=(0.5, 0.9), warmup_steps=0),
        loop=LoopConfig(batch_size=2),
        **settings,
    )
    return TokenizerTask(config, Accelerator(cpu=True, gradient_accumulation_steps=2), None, None, balance)


def write_image_shards(
    root: Path, size: int = SIZE, shards: int = 3, studies: int = 8, labelled: bool = False
) -> Path:
    """Write image shards of all three splits; every third study has two images, and all have labels if requested."""
    splits, number = {}, 0
    for split, count in (("train", shards), ("validate", 1), ("test", 1)):
        splits[split] = {}
        for shard in range(count):
            studies_of_shard = []
            for _ in range(studies):
                images = {
                    f"{k}.png": encode_png(blobs(10 * number + k, size)) for k in range(2 if number % 3 == 0 else 1)
                }
                views = ["PA"] * len(images)
                info = {
                    "views": views,
                    "study_id": f"{number:06d}",
                    "patient_id": hashlib.md5(bytes([number])).hexdigest()[:8],
                }
                if labelled:
                    info["labels"] = {"Cardiomegaly": number % 2, "Fracture": -1}
                    info["report"] = {"text": f"Heart {'enlarged' if number % 2 else 'normal'}. Image {number % 5}."}
                studies_of_shard.append((f"{number:06d}", images | {"json": encode_info(info | {"split": split})}))
                number += 1
            splits[split][shard_name(split, shard)] = write_shard(root / shard_name(split, shard), studies_of_shard)
    manifest = {"format_version": FORMAT_VERSION, "splits": splits, "transform": {"size": size}, "source": "blobs"}
    write_json(root / MANIFEST, manifest)
    return root


@pytest.fixture(scope="session")
def image_shards(tmp_path_factory) -> Path:
    return write_image_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory) -> Path:
    return write_image_shards(tmp_path_factory.mktemp("labelled"), labelled=True)


@pytest.fixture(scope="session")
def finished_run(image_shards, tmp_path_factory) -> tuple[Path, Path]:
    """Return the configuration and the run folder of an uninterrupted training of 8 steps."""
    from medunifier.shared.command import run_command
    from medunifier.stage1_tokenizer.train import main
    from tests.stage1_tokenizer.training.test_train import write_config

    folder = tmp_path_factory.mktemp("finished_run")
    config = write_config(folder, image_shards, folder / "run")
    assert run_command(main, ["--config", str(config)]) == 0
    return config, folder / "run"
