"""Convert image shards to token shards (``medunifier tokenize``).

On several processes: ``accelerate launch -m medunifier.stage1_tokenizer.cli.tokenize_shards``. A shard is a unit of
work: one process encodes it, in batches that never span two shards, so its bytes do not depend on the number of
processes. The record of a finished shard identifies its tokenizer and input; if both are unchanged, the shard is kept
when the command is run again.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn.functional import pad

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
from medunifier.data.shards.loader import ordered_batches
from medunifier.shared.artifacts import FORMAT_VERSION, read_json, remove_partial, sha256_file, write_json
from medunifier.shared.command import can_continue, run_command
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.files.os_services import free_shared_memory
from medunifier.shared.files.settings_record import refuse_other_settings
from medunifier.shared.progress import Progress
from medunifier.shared.training.config import CompileSetting, use_compile
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
from medunifier.stage1_tokenizer.pixel_range import scale_pixels, stack_pixels

FINISHED = "finished"
"""Folder with one JSON record per finished shard; replaced by the manifest at the end."""

_STUDIES_READ = 64
"""Studies that a loader process reads at a time, fewer if shared memory is scarce. To receive them takes the main
process 0.2 ms, which at 8 studies would be its most expensive work."""
_BUFFERED = 8
"""Images per process and study of a task for which shared memory is needed: four tasks of two images each."""

_File = tuple[str, dict[str, bytes]]
"""Key and files of a study."""


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
    """CPU threads per process, or on a GPU the processes that read images; 0 divides the cores among the processes of
    this machine."""
    compile: CompileSetting = "auto"
    """Compile the encoder with torch.compile: true, false or auto, which is true on a GPU. Takes a minute at the
    start, and on a CPU a C++ compiler."""

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
    if use_compile(config.compile, state.device):
        tokenizer.compile_graphs()
        torch.backends.cudnn.benchmark = True  # all batches have one shape
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
    can_continue()
    barrier()
    assigned = todo[rank() :: world_size()]
    with Progress(sum(s.samples for s in assigned), "tokenizing", "study", quiet=not is_main()) as progress:
        studies = _token_studies(assigned, tokenizer, config)
        for shard in assigned:
            row = write_shard(out / shard.name, _counted(islice(studies, shard.samples), progress))
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


def _counted(studies: Iterable[_File], progress: Progress) -> Iterator[_File]:
    for study in studies:
        yield study
        progress.advance(1)


class _Studies:
    """Samples of all splits by (split, index)."""

    def __init__(self, root: str, splits: Iterable[str]) -> None:
        self._splits = {split: ShardDataset(root, split) for split in splits}

    def __getitem__(self, key: tuple[str, int]) -> Sample:
        split, number = key
        return self._splits[split][number]


_Study = tuple[str, int, bytes]
"""Key, number of images and ``json`` member of a study."""


def _read(samples: Sequence[Sample], size: int) -> tuple[list[_Study], Tensor]:
    """Return the studies and all their images, (N, 1, size, size); called in the loader processes."""
    studies = [(sample.key, len(sample.images), encode_info(sample.info)) for sample in samples]
    return studies, stack_pixels(list(enumerate(samples)), size)


def _token_studies(shards: Sequence[_Shard], tokenizer: FrozenTokenizer, config: TokenizeConfig) -> Iterator[_File]:
    """Yield key and files of each study of the shards, in order."""
    device = tokenizer.codebook.device
    # On a CPU the encoder needs all cores, and decoding PNG takes a hundredth of its time.
    workers = 0 if device.type == "cpu" else torch.get_num_threads()
    studies_read = _studies_read(workers, tokenizer.image_size)
    keys: list[list[tuple[str, int]]] = []
    ends: list[bool] = []  # whether a shard ends with these studies
    for shard in shards:
        for begin in range(0, shard.samples, studies_read):
            end = min(begin + studies_read, shard.samples)
            keys.append([(shard.split, shard.start + number) for number in range(begin, end)])
            ends.append(end == shard.samples)
    dataset = _Studies(config.shards, {shard.split for shard in shards})
    collate = partial(_read, size=tokenizer.image_size)
    read = ordered_batches(dataset, keys, collate, workers=workers, option="--threads")
    studies: deque[_Study] = deque()
    dtype = np.uint16 if tokenizer.codebook_size <= 2**16 else np.uint32
    codes = np.zeros((0, *tokenizer.grid), dtype)
    for more in _codes(_image_batches(zip(read, ends, strict=True), studies, config.batch_size), tokenizer, config):
        codes = np.concatenate([codes, more.astype(dtype)])
        while studies and len(codes) >= studies[0][1]:
            key, count, info = studies.popleft()
            yield key, {"codes.npy": encode_npy(codes[:count]), "json": info}
            codes = codes[count:]


def _studies_read(workers: int, size: int) -> int:
    free = free_shared_memory()
    if not workers or free is None:
        return _STUDIES_READ
    return max(1, min(_STUDIES_READ, free // (_BUFFERED * (workers + 1) * size**2)))


def _image_batches(
    read: Iterable[tuple[tuple[list[_Study], Tensor], bool]], studies: deque[_Study], batch_size: int
) -> Iterator[Tensor]:
    """Yield batches of ``batch_size`` images, fewer at the end of a shard; append their studies to ``studies``."""
    held: list[Tensor] = []
    for (more, pixels), end in read:
        studies.extend(more)
        if held and held[0].dtype != pixels.dtype:  # of 8 and of 16 bits
            held, pixels = [scale_pixels(part) for part in held], scale_pixels(pixels)
        held.append(pixels)
        if not end and sum(map(len, held)) < batch_size:
            continue
        images = torch.cat(held)
        whole = len(images) if end else len(images) // batch_size * batch_size
        yield from images[:whole].split(batch_size)
        held = [images[whole:]] if whole < len(images) else []


def _codes(batches: Iterable[Tensor], tokenizer: FrozenTokenizer, config: TokenizeConfig) -> Iterator[np.ndarray]:
    """Yield the codes (N, h, w) of each batch while the device encodes the next one."""
    device = tokenizer.codebook.device
    launched: tuple[Tensor, torch.cuda.Event | None] | None = None
    for images in batches:
        count = len(images)
        if use_compile(config.compile, device):  # for one batch size
            images = pad(images, (0, 0, 0, 0, 0, 0, 0, config.batch_size - count))
        if device.type == "cuda":
            images = images.pin_memory()
        images = scale_pixels(images.to(device, non_blocking=True))
        codes = tokenizer.encode_indices(images, config.precision)[:count].int().to("cpu", non_blocking=True)
        event = None
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        if launched is not None:
            yield _arrived(*launched)
        launched = codes, event
    if launched is not None:
        yield _arrived(*launched)


def _arrived(codes: Tensor, event: torch.cuda.Event | None) -> np.ndarray:
    if event is not None:
        event.synchronize()
    return codes.cpu().numpy()


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
