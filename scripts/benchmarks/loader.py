"""Benchmark shuffled reading of token shards: the indexed loader against stock ``webdataset.WebDataset``.

Both read the same tar files from the page cache, decode codes and json of every sample, and stack batches of 32
int64 codes. The peer is configured as in webdataset's documentation: shards shuffled, a buffer of 1,000 samples,
batches made in the dataset, so that the DataLoader only passes them on. Each round is one whole epoch from a new
iterator: a shorter one would charge the peer for filling a buffer that it does not use.

The last row measures the data wait in a training step: forward, backward and the time until the batch is ready, with
reports truncated and tokenized as in training, in the training process itself (workers would hide most of it).
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from medunifier.bench import BenchConfig, Row, load_benchmark, paired
from medunifier.data.shards.dataset import MANIFEST, ShardDataset, encode_info, encode_npy, shard_name, write_shard
from medunifier.data.shards.loader import sample_stream
from medunifier.shared.artifacts import FORMAT_VERSION, write_json
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.report_codec import ReportCodec
from medunifier.stage2_unified.model.processing.text_tokenizer import train_text_tokenizer
from medunifier.stage2_unified.training.collator import StudyCollator
from medunifier.stage2_unified.training.config import LossWeights
from medunifier.stage2_unified.training.four_objectives import FourObjectives

SHARDS, STUDIES, BATCH = 8, 512, 32
TARGET, MAX_WAIT = 5.0, 0.02
REPORT = {"findings": "The heart is normal in size. " * 6, "impression": "No acute process."}


def rows(config: BenchConfig) -> list[Row]:
    """Measure samples per second over an epoch: read in the training process, and by two workers each."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root)
        dataset = ShardDataset(root, "train")
        urls = sorted(str(path) for path in root.glob("*.tar"))

        def ours(workers: int) -> Callable[[], None]:
            return lambda: _epoch(sample_stream(dataset, _ours, batch_size=BATCH, seed=0, workers=workers))

        def peer(workers: int) -> Callable[[], None]:
            return lambda: _epoch(iter(_stock(urls, workers)))

        samples = float(SHARDS * STUDIES)
        what = "token shards, shuffled, samples/s"
        return [
            paired(what, ours(0), peer(0), config, TARGET, samples),
            paired(f"{what}, two workers", ours(2), peer(2), config, None, samples),
            _waiting(dataset, config),
        ]


def _waiting(dataset: ShardDataset, config: BenchConfig) -> Row:
    """Measure the fraction of a training step of the four objectives that waits for its batch."""
    stage2 = load_benchmark("stage2")
    shape = stage2.RADIOGRAPHS
    torch.manual_seed(0)
    model: MedUnifierForConditionalGeneration = stage2._model(shape)
    objectives = FourObjectives(model, LossWeights())
    words = train_text_tokenizer(REPORT.values(), model.config.text_size)
    codec = ReportCodec(words, model.vocabulary, tuple(REPORT), shape.longest)
    stream = sample_stream(dataset, StudyCollator(codec, training=True), batch_size=shape.studies, seed=0)
    waited = computed = 0.0
    for number in range(config.rounds + 1):
        begin = time.perf_counter()
        batch = next(stream)
        ready = time.perf_counter()
        stage2._step(objectives, objectives(batch)["loss"])
        if number:  # the first round opens files and warms up
            waited, computed = waited + ready - begin, computed + time.perf_counter() - ready
    fraction = waited / (waited + computed)
    what = f"fraction of a step ({shape.studies} studies of {shape.name}) that waits for data; peer: what may"
    return Row(what, fraction, MAX_WAIT, MAX_WAIT / fraction, 1.0)


def _write(root: Path) -> None:
    generator, shards = np.random.default_rng(0), {}
    for number in range(SHARDS):
        samples = []
        for study in range(STUDIES):
            codes = generator.integers(0, 512, (1, 16, 16), dtype=np.uint16)
            info = {"study_id": f"{study}", "patient_id": "p", "views": ["PA"], "report": REPORT}
            samples.append((f"{number}-{study}", {"codes.npy": encode_npy(codes), "json": encode_info(info)}))
        shards[shard_name("train", number)] = write_shard(root / shard_name("train", number), samples)
    write_json(root / MANIFEST, {"format_version": FORMAT_VERSION, "splits": {"train": shards}})


def _epoch(batches: Iterator[torch.Tensor]) -> None:
    remaining = SHARDS * STUDIES
    while remaining:
        remaining -= len(next(batches))


def _ours(samples: Sequence[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample.codes[0] for _, sample in samples]).astype(np.int64))


def _theirs(samples: list[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample["codes.npy"][0] for sample in samples]).astype(np.int64))


def _stock(urls: list[str], workers: int) -> DataLoader[Any]:
    dataset = webdataset.WebDataset(urls, shardshuffle=SHARDS, seed=0).shuffle(1000).decode()
    batches = dataset.batched(BATCH, collation_fn=_theirs)
    return DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)
