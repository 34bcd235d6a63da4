"""Image shards of synthetic radiographs, written by several processes."""

from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medunifier.data.shards.dataset import MANIFEST, encode_info, encode_png, shard_name, write_shard
from medunifier.shared.artifacts import FORMAT_VERSION, write_json

_COARSE = 16


def synthetic_image(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return (size, size) uint8: smooth shapes with sensor noise. As PNG it is about as large as a radiograph."""
    coarse = Image.fromarray(generator.integers(0, 256, (_COARSE, _COARSE), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.int16)
    noise = generator.integers(-2, 3, (size, size), dtype=np.int16)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def write_one(folder: str, number: int, images: int, size: int) -> dict[str, Any]:
    """Write shard ``number`` with studies of one image each and return its row of the manifest."""
    generator = np.random.default_rng(number)
    samples = []
    for study in range(images):
        info = {
            "study_id": f"{number}-{study}",
            "patient_id": f"{number}-{study}",
            "views": ["PA"],
            "report": {"findings": "synthetic"},
        }
        members = {"0.png": encode_png(synthetic_image(size, generator)), "json": encode_info(info)}
        samples.append((f"{number:04d}{study:06d}", members))
    return write_shard(Path(folder) / shard_name("train", number), samples)


def write_shards(executor: Executor, folder: Path, shards: int, images: int, size: int) -> None:
    """Write a folder of ``shards`` image shards with ``images`` images each."""
    folder.mkdir()
    rows = [executor.submit(write_one, str(folder), number, images, size) for number in range(shards)]
    manifest = {shard_name("train", number): row.result() for number, row in enumerate(rows)}
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, "splits": {"train": manifest}})
