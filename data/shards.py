"""WebDataset shards with an index of member offsets: written byte for byte the same, read at random.

A shard is a plain tar that stock ``webdataset.WebDataset`` reads: one sample a study, members
``{study}.0.png``, ``{study}.1.png``, … or ``{study}.codes.npy``, and ``{study}.json``. Beside it lies
``{shard}.index.json``; it is rebuilt from the tar where it is missing.
"""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image

from shared.artifacts import FORMAT_VERSION, atomic_file, read_json, sha256_file, write_json
from shared.errors import UserError

MANIFEST = "manifest.json"
INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True)
class Sample:
    """One study read from a shard.

    ``images`` are (H, W) uint8 or uint16 arrays (image shards), ``codes`` (images, h, w) integers (token
    shards); the other is empty. ``info`` is the sample's ``json``: study_id, patient_id, views, split,
    report, labels, source.
    """

    key: str
    info: dict[str, Any]
    images: tuple[np.ndarray, ...] = ()
    codes: np.ndarray | None = None


def shard_name(split: str, number: int) -> str:
    """``train-000003.tar``"""
    return f"{split}-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> dict[str, Any]:
    """Write a tar and its index by rename; the bytes depend on the samples alone (no times, no owners).

    Args:
        path: the shard's final place.
        samples: (key, {member's extension: bytes}) in the order in which they are to lie.

    Returns:
        The manifest's row: ``{"samples", "bytes", "sha256"}``.
    """
    count = 0
    with atomic_file(path) as partial:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in samples:
                for extension, content in members.items():
                    entry = tarfile.TarInfo(f"{key}.{extension}")
                    entry.size, entry.mode = len(content), 0o644
                    tar.addfile(entry, io.BytesIO(content))
                count += 1
        row = {"samples": count, "bytes": partial.stat().st_size, "sha256": sha256_file(partial)}
    # After the shard: an index without its shard would be taken for a finished one.
    write_json(index_path(path), {"format_version": FORMAT_VERSION, "members": _scan(path)}, indent=None)
    return row


def index_path(shard: Path) -> Path:
    """Where a shard's index lies."""
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _scan(shard: Path) -> list[list[Any]]:
    """Rows ``[key, {extension: [offset, size]}]`` in the shard's order."""
    rows: list[list[Any]] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                key, _, extension = entry.name.partition(".")
                if not rows or rows[-1][0] != key:
                    rows.append([key, {}])
                rows[-1][1][extension] = [entry.offset_data, entry.size]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"shard {shard} cannot be read: {error}; make it again or fetch it again") from error
    return rows


def _index(shard: Path, expected_samples: int) -> list[list[Any]]:
    path = index_path(shard)
    rows: list[list[Any]] | None = None
    if path.is_file():
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["members"]
        except (ValueError, KeyError):
            rows = None
    if rows is None or len(rows) != expected_samples:
        rows = _scan(shard)
        if len(rows) != expected_samples:
            raise UserError(
                f"shard {shard} holds {len(rows)} samples but its manifest says {expected_samples}: "
                "it was changed or cut short; make the shards again"
            )
        with contextlib.suppress(UserError):  # a read-only folder: the index is then made at every start
            write_json(path, {"format_version": FORMAT_VERSION, "members": rows}, indent=None)
    return rows


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W) uint8 or uint16 -> PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a ``.npy`` file, without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def encode_info(info: Mapping[str, Any]) -> bytes:
    """A sample's ``json`` member."""
    return json.dumps(info, sort_keys=True, ensure_ascii=False).encode()


def read_manifest(root: str | Path) -> dict[str, Any]:
    """The ``manifest.json`` of a shard folder, local or an fsspec URL.

    Raises:
        UserError: if the folder has none, or a newer format than this version reads.
    """
    if "://" in str(root):
        try:
            with fsspec.open(f"{str(root).rstrip('/')}/{MANIFEST}", "r") as file:
                manifest = json.load(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{root}/{MANIFEST} cannot be read: {error}") from None
    else:
        manifest = read_json(Path(root) / MANIFEST, "a shard folder (made by `medunifier ingest` or `tokenize`)")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{root} has format version {version}, this medunifier reads {FORMAT_VERSION}")
    return dict(manifest)


class ShardDataset:
    """The samples of one split, by number, from local or remote shards.

    Args:
        path: folder or fsspec URL with a ``manifest.json``; remote shards are cached whole when first read.
        split: ``train``, ``validate`` or ``test``.

    Raises:
        UserError: if the folder is no shard folder, or the split is absent or empty.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.root, self.split = str(path).rstrip("/"), split
        self.manifest = read_manifest(self.root)
        shards = self.manifest["splits"].get(split, {})
        if not any(row["samples"] for row in shards.values()):
            present = ", ".join(name for name, rows in self.manifest["splits"].items() if rows)
            raise UserError(f"{path} has no samples of split {split!r}; it has: {present or 'none'}")
        self._shards = [(name, row["samples"]) for name, row in sorted(shards.items()) if row["samples"]]
        self._starts = np.cumsum([0] + [count for _, count in self._shards])
        self._indices: dict[int, list[list[Any]]] = {}
        self._files: dict[int, int] = {}  # open file descriptors, one a shard and a process
        self._process = os.getpid()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __getitem__(self, number: int) -> Sample:
        """Read sample ``number`` (0 … len - 1), with its pixels or codes."""
        key, members = self._members(number)
        info = json.loads(members["json"])
        images = []
        while (name := f"{len(images)}.png") in members:
            images.append(np.asarray(Image.open(io.BytesIO(members[name]))))
        codes = members.get("codes.npy")
        return Sample(
            key=key,
            info=info,
            images=tuple(images),
            codes=None if codes is None else np.load(io.BytesIO(codes), allow_pickle=False),
        )

    def info(self, number: int) -> dict[str, Any]:
        """The ``json`` of sample ``number`` alone, without decoding an image."""
        return dict(json.loads(self._members(number, only="json")[1]["json"]))

    def infos(self) -> Iterator[dict[str, Any]]:
        """Every sample's ``json``, in order."""
        return (self.info(number) for number in range(len(self)))

    def _members(self, number: int, only: str | None = None) -> tuple[str, dict[str, bytes]]:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        if shard not in self._indices:
            self._indices[shard] = _index(self._local(shard), self._shards[shard][1])
        key, places = self._indices[shard][number - int(self._starts[shard])]
        file = self._open(shard)
        # pread: no shared file position, so that forked workers cannot disturb each other.
        content = {}
        for extension, (offset, size) in places.items():
            if only in (None, extension):
                content[extension] = os.pread(file, size, offset)
                if len(content[extension]) != size:
                    raise UserError(
                        f"shard {self._shards[shard][0]} of {self.root} is cut short; fetch or make it again"
                    )
        return key, content

    def _open(self, shard: int) -> int:
        if self._process != os.getpid():
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            self._files[shard] = os.open(self._local(shard), os.O_RDONLY)
        return self._files[shard]

    def _local(self, shard: int) -> Path:
        name = self._shards[shard][0]
        if "://" in self.root:
            return Path(_cached(f"{self.root}/{name}"))
        path = Path(self.root) / name
        if not path.is_file():
            raise UserError(f"shard {path} is in the manifest but not on disk; copy it here or make the shards again")
        return path


@cache
def _cached(url: str) -> str:
    """A local copy of a remote shard, fetched once a machine."""
    cache = os.environ.get("MEDUNIFIER_CACHE", str(Path.home() / ".cache" / "medunifier"))
    return str(fsspec.open_local(f"filecache::{url}", filecache={"cache_storage": cache, "same_names": False}))
