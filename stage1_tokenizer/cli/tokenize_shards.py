"""Convert image shards to token shards (``medunifier tokenize``).

On several processes: ``accelerate launch -m medunifier.stage1_tokenizer.cli.tokenize_shards``. A shard is a unit of
work: one process encodes it, in batches that never span two shards, so its bytes do not depend on the number of
processes. The record of a finished shard identifies its tokenizer and input; if both are unchanged, the shard is kept
when the command is run again.
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
from medunifier.stage1_tokenizer.pixel_range import stack_images

FINISHED = "finished"
"""Folder with one JSON record per finished shard; replaced by the manifest at the end."""


@dataclass(frozen=True)
class TokenizeConfig:
    """Convert image shards to token shards with a frozen tokenizer."""

    tokenizer: str
    """Folder of the frozen tokenizer, or a model folder or stage-1 run folder that contains one."""
    shards: str
    """Folder or URL of image shards from `medunifier ingest`."""
    out: str
    """Output folder of the token shards; finished shards in it are kept."""
    batch_size: int = 32
    """Images per batch."""
    precision: Precision = "auto"
    """Precision of the encoder: auto is bf16 if the device supports it in hardware, else float32. A few percent of
    the codes differ between the two; the codebook lookup is float32 in both."""
    threads: int = 0
    """CPU threads per process; 0 divides the cores among the processes of this machine."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class _Shard:
    """One image shard to tokenize."""

    split: str
    name: str
    start: int
    """Index of its first sample in the split."""
    samples: int
    sha256: str


def main(argv: Sequence[str] | None = None) -> None:
    """Tokenize all unfinished shards, then write the manifest.

    Raises:
        UserError: if the shards, the tokenizer and the image sizes do not match, or ``--out`` holds tokens of another
            tokenizer.
    """
    config = parse_config(TokenizeConfig, argv, prog="medunifier tokenize")
    state = PartialState(cpu=on_cpu())
    warn_if_alone()
    use_threads(config.threads)
    tokenizer = FrozenTokenizer.from_pretrained(config.tokenizer).to(state.device)
    # The machines of a run may differ: all processes use the precision of the first.
    precision = gather_objects(resolve_precision(config.precision, state.device))[0]
    config = replace(config, precision=precision)
    source = read_manifest(config.shards)
    identity = _identity(tokenizer, config)
    out = Path(config.out)
    shards = _list_shards(source)
    if is_main():
        remove_partial(out)
    finished = gather_objects(_finished_records(out, identity))[0]
    todo = [shard for shard in shards if not _is_up_to_date(out, shard, finished)]
    manifest = out / MANIFEST
    if not todo and manifest.is_file():
        if is_main():
            print(f"{out} is done already: {len(shards)} token shards of tokenizer {tokenizer.fingerprint[:12]}")
        return
    if is_main():
        manifest.unlink(missing_ok=True)  # it lists shards that are now being replaced
        for shard in shards:  # so that the shards of the old manifest are still known after an interruption
            if shard not in todo:
                write_json(_finished_path(out, shard), {"tokenizer": identity, "row": finished[shard.name]})
    barrier()
    assigned = todo[rank() :: world_size()]
    with Progress(sum(s.samples for s in assigned), "tokenizing", "study", quiet=not is_main()) as progress:
        for shard in assigned:
            studies = ShardDataset(config.shards, shard.split)
            samples = (studies[shard.start + number] for number in range(shard.samples))
            row = write_shard(out / shard.name, _encode_studies(samples, tokenizer, config, progress))
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


def _list_shards(source: Mapping[str, Any]) -> list[_Shard]:
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


def _finished_records(out: Path, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the manifest rows of finished shards by name, from the manifest and from an interrupted run."""
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


def _is_up_to_date(out: Path, shard: _Shard, finished: Mapping[str, Mapping[str, Any]]) -> bool:
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


def _encode_studies(
    samples: Iterator[Sample], tokenizer: FrozenTokenizer, config: TokenizeConfig, progress: Progress
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and files of each study, in order. At least ``batch_size`` images are encoded at a time."""
    pending: list[Sample] = []
    for sample in samples:
        pending.append(sample)
        if sum(len(s.images) for s in pending) >= config.batch_size:
            yield from _encode_batch(pending, tokenizer, config)
            progress.advance(len(pending))
            pending = []
    if pending:
        yield from _encode_batch(pending, tokenizer, config)
        progress.advance(len(pending))


def _encode_batch(
    studies: Sequence[Sample], tokenizer: FrozenTokenizer, config: TokenizeConfig
) -> Iterator[tuple[str, dict[str, bytes]]]:
    images = stack_images(list(enumerate(studies)), tokenizer.image_size)
    device = tokenizer.codebook.device
    batches = images.split(config.batch_size)
    encoded = [tokenizer.encode_indices(batch.to(device), config.precision) for batch in batches]
    dtype = np.uint16 if tokenizer.codebook_size <= 2**16 else np.uint32
    codes = torch.cat(encoded).cpu().numpy().astype(dtype)
    begin = 0
    for study in studies:
        study_codes = codes[begin : begin + len(study.images)]  # (images, h, w)
        begin += len(study.images)
        yield study.key, {"codes.npy": encode_npy(study_codes), "json": encode_info(study.info)}


def _write_manifest(
    out: Path, source: Mapping[str, Any], shards: Sequence[_Shard], identity: Mapping[str, Any]
) -> None:
    splits: dict[str, dict[str, Any]] = {split: {} for split in source["splits"]}
    for shard in shards:
        record = read_json(_finished_path(out, shard), "the record of a finished shard")
        splits[shard.split][shard.name] = record["row"]
    inherited = {key: source[key] for key in ("transform", "source", "counts") if key in source}
    write_json(
        out / MANIFEST, {"format_version": FORMAT_VERSION, "splits": splits, "tokenizer": dict(identity)} | inherited
    )
    for path in (out / FINISHED).iterdir():
        path.unlink()
    (out / FINISHED).rmdir()


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
