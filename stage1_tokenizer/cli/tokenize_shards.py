"""Image shards to token shards: ``medunifier tokenize``, or ``accelerate launch -m medunifier.stage1_tokenizer.cli.tokenize_shards``.

One shard is one unit of work: it goes to one process, in batches that begin anew with it, so its bytes do not
depend on the number of processes. A finished shard is known by the tokenizer and the input it was made of, and is
kept when the command is started again.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from medunifier.data.shards.dataset import (
    MANIFEST,
    Sample,
    ShardDataset,
    encode_info,
    encode_npy,
    read_manifest,
    write_shard,
)
from medunifier.data.shards.index import index_path
from medunifier.shared.artifacts import FORMAT_VERSION, read_json, remove_partial, sha256_file, write_json
from medunifier.shared.command import run_command
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.files.settings_record import refuse_other_settings
from medunifier.shared.progress import Progress
from medunifier.shared.training.distributed import (
    barrier,
    gather_objects,
    is_main,
    on_cpu,
    rank,
    warn_if_alone,
    world_size,
)
from medunifier.shared.training.loop import use_threads
from medunifier.shared.training.precision import Precision, resolve_precision
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.preprocessing import stack_images

FINISHED = "finished"
"""Folder of one JSON a finished shard, until the manifest takes their place."""


@dataclass(frozen=True)
class TokenizeConfig:
    """Turn image shards into token shards with a frozen tokenizer."""

    tokenizer: str
    """Folder of the frozen tokenizer."""
    shards: str
    """Folder or URL of image shards, made by `medunifier ingest`."""
    out: str
    """Folder of the token shards; what is finished there is kept."""
    batch_size: int = 32
    """Images that are encoded at once."""
    precision: Precision = "auto"
    """Of the encoder: auto is bf16 where the device has units for it, else float32. Some percent of the codes differ
    between the two; the codebook lookup is float32 in both."""
    threads: int = 0
    """CPU threads of a process; 0 shares the cores among the processes of this machine."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class _Shard:
    """One unit of work."""

    split: str
    name: str
    start: int
    """Number of its first sample in the split."""
    samples: int
    sha256: str


def main(argv: Sequence[str] | None = None) -> None:
    """Tokenize every shard that is not finished yet, then write the manifest.

    Raises:
        UserError: if the shards, the tokenizer or the sizes of the images do not fit, or ``--out`` holds tokens
            of another tokenizer.
    """
    config = parse_config(TokenizeConfig, argv, prog="medunifier tokenize")
    state = PartialState(cpu=on_cpu())
    warn_if_alone()
    use_threads(config.threads)
    tokenizer = FrozenTokenizer.from_pretrained(config.tokenizer).to(state.device)
    # Machines of different kinds may share a run: the first process decides for all.
    precision = gather_objects(resolve_precision(config.precision, state.device))[0]
    config = replace(config, precision=precision)
    source = read_manifest(config.shards)
    identity = _identity(tokenizer, config)
    out = Path(config.out)
    shards = _work(source)
    if is_main():
        remove_partial(out)
    finished = gather_objects(_finished(out, identity))[0]
    todo = [shard for shard in shards if not _is_kept(out, shard, finished)]
    manifest = out / MANIFEST
    if not todo and manifest.is_file():
        if is_main():
            print(f"{out} is done already: {len(shards)} token shards of tokenizer {tokenizer.fingerprint[:12]}")
        return
    if is_main():
        manifest.unlink(missing_ok=True)  # it promises shards that are now being replaced
        for shard in shards:  # so that what the old manifest vouched for is still known after a kill
            if shard not in todo:
                write_json(_finished_path(out, shard), {"tokenizer": identity, "row": finished[shard.name]})
    barrier()
    mine = todo[rank() :: world_size()]
    with Progress(sum(s.samples for s in mine), "tokenizing", "study", quiet=not is_main()) as progress:
        for shard in mine:
            studies = ShardDataset(config.shards, shard.split)
            samples = (studies[shard.start + number] for number in range(shard.samples))
            row = write_shard(out / shard.name, _encoded(samples, tokenizer, config, progress))
            record = {"tokenizer": identity, "row": row | {"input_sha256": shard.sha256}}
            write_json(_finished_path(out, shard), record)
    barrier()
    if is_main():
        _write_manifest(out, source, shards, identity)
        print(f"{out} written: {len(shards)} token shards of tokenizer {tokenizer.fingerprint[:12]}")
    barrier()


def _identity(tokenizer: FrozenTokenizer, config: TokenizeConfig) -> dict[str, Any]:
    return {
        "fingerprint": tokenizer.fingerprint,
        "grid": list(tokenizer.grid),
        "codes": tokenizer.codebook_size,
        "image_size": tokenizer.image_size,
        "precision": "bfloat16" if config.precision == "bf16" else config.precision,
    }


def _work(source: Mapping[str, Any]) -> list[_Shard]:
    shards = []
    for split, rows in source["splits"].items():
        start = 0
        for name, row in sorted(rows.items()):
            if row["samples"]:
                shards.append(_Shard(split, name, start, row["samples"], row["sha256"]))
            start += row["samples"]
    if not shards:
        raise UserError("the shard folder holds no samples: nothing to tokenize")
    return shards


def _finished(out: Path, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of finished shards by name, from the manifest and from an interrupted run."""
    rows: dict[str, dict[str, Any]] = {}
    records = []
    if (out / MANIFEST).is_file():
        manifest = read_manifest(out)
        if "tokenizer" not in manifest:
            raise UserError(f"{out} holds image shards: pass another --out")
        for split in manifest["splits"].values():
            records += [(name, {"tokenizer": manifest["tokenizer"], "row": row}) for name, row in split.items()]
    if (out / FINISHED).is_dir():
        for path in sorted((out / FINISHED).glob("*.json")):
            records.append((path.name.removesuffix(".json"), read_json(path, "the record of a finished shard")))
    for name, record in records:
        refuse_other_settings(out, record["tokenizer"], identity)
        rows[name] = record["row"]
    return rows


def _is_kept(out: Path, shard: _Shard, finished: Mapping[str, Mapping[str, Any]]) -> bool:
    row, path = finished.get(shard.name), out / shard.name
    return (
        row is not None
        and row["input_sha256"] == shard.sha256
        and path.is_file()
        and index_path(path).is_file()
        and path.stat().st_size == row["bytes"]
        and sha256_file(path) == row["sha256"]
    )


def _finished_path(out: Path, shard: _Shard) -> Path:
    return out / FINISHED / f"{shard.name}.json"


def _encoded(
    samples: Iterator[Sample], tokenizer: FrozenTokenizer, config: TokenizeConfig, progress: Progress
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The members of each study, in order; at least ``batch_size`` images are encoded at a time."""
    pending: list[Sample] = []
    for sample in samples:
        pending.append(sample)
        if sum(len(s.images) for s in pending) >= config.batch_size:
            yield from _flush(pending, tokenizer, config)
            progress.advance(len(pending))
            pending = []
    if pending:
        yield from _flush(pending, tokenizer, config)
        progress.advance(len(pending))


def _flush(
    studies: Sequence[Sample], tokenizer: FrozenTokenizer, config: TokenizeConfig
) -> Iterator[tuple[str, dict[str, bytes]]]:
    images = stack_images(list(enumerate(studies)), tokenizer.image_size)
    device = tokenizer.codebook.device
    parts = [tokenizer.encode_indices(part.to(device), config.precision) for part in images.split(config.batch_size)]
    dtype = np.uint16 if tokenizer.codebook_size <= 2**16 else np.uint32
    codes = torch.cat(parts).cpu().numpy().astype(dtype)
    begin = 0
    for study in studies:
        own = codes[begin : begin + len(study.images)]
        begin += len(study.images)
        yield study.key, {"codes.npy": encode_npy(own), "json": encode_info(study.info)}


def _write_manifest(
    out: Path, source: Mapping[str, Any], shards: Sequence[_Shard], identity: Mapping[str, Any]
) -> None:
    splits: dict[str, dict[str, Any]] = {split: {} for split in source["splits"]}
    for shard in shards:
        record = read_json(_finished_path(out, shard), "the record of a finished shard")
        splits[shard.split][shard.name] = record["row"]
    kept = {key: source[key] for key in ("transform", "source", "counts") if key in source}
    write_json(
        out / MANIFEST, {"format_version": FORMAT_VERSION, "splits": splits, "tokenizer": dict(identity)} | kept
    )
    for path in (out / FINISHED).iterdir():
        path.unlink()
    (out / FINISHED).rmdir()


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
