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


def write_image_shards(root: Path, size: int = SIZE, shards: int = 3, studies: int = 8) -> Path:
    """Write image shards of all three splits; every third study has two images."""
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
def finished_run(image_shards, tmp_path_factory) -> tuple[Path, Path]:
    """Return the configuration and the run folder of an uninterrupted training of 8 steps."""
    from medunifier.shared.command import run_command
    from medunifier.stage1_tokenizer.train import main
    from tests.stage1_tokenizer.training.test_train import write_config

    folder = tmp_path_factory.mktemp("finished_run")
    config = write_config(folder, image_shards, folder / "run")
    assert run_command(main, ["--config", str(config)]) == 0
    return config, folder / "run"
