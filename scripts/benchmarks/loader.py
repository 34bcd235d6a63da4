"""Token shards, shuffled: our indexed loader against stock ``webdataset.WebDataset`` with a DataLoader."""

import tempfile
from pathlib import Path

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from data.loader import sample_stream
from data.shards import MANIFEST, ShardDataset, encode_info, encode_npy, shard_name, write_shard
from shared.artifacts import FORMAT_VERSION, write_json
from shared.bench import BenchConfig, Row, paired

SHARDS, STUDIES, BATCH, BATCHES = 8, 512, 32, 64
TARGET = 5.0


def rows(config: BenchConfig) -> list[Row]:
    """One row: samples a second, read in the training process, from the start of a stream."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root)
        dataset = ShardDataset(root, "train")
        urls = sorted(str(path) for path in root.glob("*.tar"))
        work = {"units": float(BATCH * BATCHES)}
        return [
            paired(
                "token shards, shuffled, samples/s",
                lambda: _read(sample_stream(dataset, _ours, batch_size=BATCH, seed=0)),
                lambda: _read(iter(_stock(urls))),
                config,
                TARGET,
                **work,
            )
        ]


def _write(root: Path) -> None:
    draw, shards = np.random.default_rng(0), {}
    for number in range(SHARDS):
        samples = []
        for study in range(STUDIES):
            codes = draw.integers(0, 1024, (1, 16, 16), dtype=np.uint16)
            report = {"findings": "The heart is normal in size. " * 6, "impression": "No acute process."}
            info = {"study_id": f"{study}", "patient_id": "p", "views": ["PA"], "report": report}
            samples.append((f"{number}-{study}", {"codes.npy": encode_npy(codes), "json": encode_info(info)}))
        shards[shard_name("train", number)] = write_shard(root / shard_name("train", number), samples)
    write_json(root / MANIFEST, {"format_version": FORMAT_VERSION, "splits": {"train": shards}})


def _read(batches: object) -> None:
    for _ in range(BATCHES):
        next(batches)  # type: ignore[call-overload]


def _ours(samples: list) -> torch.Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(np.stack([sample.codes[0].astype(np.int64) for _, sample in samples]))


def _theirs(samples: list) -> torch.Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(np.stack([sample["codes.npy"][0].astype(np.int64) for sample in samples]))


def _stock(urls: list[str]) -> DataLoader:  # type: ignore[type-arg]
    dataset = webdataset.WebDataset(urls, shardshuffle=SHARDS, seed=0).shuffle(1000).decode()
    return DataLoader(dataset, batch_size=BATCH, collate_fn=_theirs)
