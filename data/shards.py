"""WebDataset shards with an index of member offsets: written byte for byte the same, read at random.

A shard is a plain tar that stock ``webdataset.WebDataset`` reads: one sample a study, members
``{study}.0.png``, ``{study}.1.png``, … or ``{study}.codes.npy``, and ``{study}.json``. Beside it lies
``{shard}.index.json``; it is rebuilt from the tar where it is missing.
"""

import contextlib
import io
import json
import math
import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from data.masks import masks_of_image
from data.places import RemotePath, as_path
from data.shard_files import checked_shard
from shared.artifacts import FORMAT_VERSION, atomic_file, read_json, sha256_file, write_json
from shared.errors import UserError

MANIFEST = "manifest.json"
INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True)
class Sample:
    """One study read from a shard.

    ``images`` are (H, W) uint8 or uint16 arrays (image shards), ``codes`` (images, h, w) integers (token
    shards); the other is empty. ``info`` is the sample's ``json``: study_id, patient_id, views, split,
    report, labels, source, and visit where the source tells the order of a patient's studies. ``prior`` is
    the study before, where a reader of several looks for it.
    """

    key: str
    info: dict[str, Any]
    images: tuple[np.ndarray, ...] = ()
    codes: np.ndarray | None = None
    prior: "Sample | None" = None


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
        row: dict[str, Any] = {"samples": count, "bytes": partial.stat().st_size, "sha256": sha256_file(partial)}
    # After the shard: an index without its shard would be taken for a finished one.
    _write_index(path, _scan(path), row["sha256"])
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


def _index(shard: Path, expected_samples: int, sha256: str) -> list[list[Any]]:
    """Where the members lie; made anew where the index is absent, damaged or that of another shard."""
    path = index_path(shard)
    with contextlib.suppress(OSError, ValueError, KeyError):
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["shard_sha256"] == sha256:
            return list(index["members"])
    rows = _scan(shard)
    if len(rows) != expected_samples:
        raise UserError(
            f"shard {shard} holds {len(rows)} samples but its manifest says {expected_samples}: "
            "the manifest was changed; make the shards again"
        )
    with contextlib.suppress(UserError):  # a read-only folder: the index is then made at every start
        _write_index(shard, rows, sha256)
    return rows


def _write_index(shard: Path, rows: list[list[Any]], sha256: str) -> None:
    index = {"format_version": FORMAT_VERSION, "shard_sha256": sha256, "members": rows}
    write_json(index_path(shard), index, indent=None)


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


def decode_npy(content: bytes | memoryview) -> np.ndarray:
    """What :func:`encode_npy` wrote; a writable array of its own.

    ``np.load`` reads the header as a Python literal, which takes 80 of the 90 µs that it needs for 256 codes.
    All shards of a run share a few headers, so each is read once.

    Raises:
        ValueError: if it is no such file, is cut short, or needs pickle.
    """
    if content[6] != 1:  # a header beyond 64 KiB, which none of ours has
        return np.load(io.BytesIO(content), allow_pickle=False)
    begin = _NPY_START + int.from_bytes(content[8:_NPY_START], "little")
    dtype, count, shape, order = _npy_layout(bytes(content[:begin]))
    return np.frombuffer(content, dtype, count, begin).reshape(shape, order=order).copy()


_NPY_START = 10  # magic, version 1.0, length of the header that follows


@lru_cache(maxsize=1024)
def _npy_layout(header: bytes) -> tuple[np.dtype[Any], int, tuple[int, ...], Literal["C", "F"]]:
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array of Python objects is not read")
    return dtype, math.prod(shape), shape, "F" if fortran_order else "C"


def encode_info(info: Mapping[str, Any]) -> bytes:
    """A sample's ``json`` member."""
    return json.dumps(info, sort_keys=True, ensure_ascii=False).encode()


def read_manifest(root: str | Path) -> dict[str, Any]:
    """The ``manifest.json`` of a shard folder, local or an fsspec URL.

    Raises:
        UserError: if the folder has none, or a newer format than this version reads.
    """
    root = as_path(root)
    if isinstance(root, RemotePath):
        try:
            manifest = json.loads((root / MANIFEST).read_bytes())
        except (FileNotFoundError, ValueError) as error:
            reason = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
            raise UserError(
                f"{root}/{MANIFEST} cannot be read: {reason}; give the address of a shard folder"
            ) from None
    else:
        manifest = read_json(root / MANIFEST, "a shard folder (made by `medunifier ingest` or `tokenize`)")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{root} has format version {version}, this medunifier reads {FORMAT_VERSION}")
    return dict(manifest)


class ShardDataset:
    """The samples of one split, by number, from local or remote shards.

    Args:
        path: folder or fsspec URL with a ``manifest.json``; remote shards are cached whole when first read.
        split: ``train``, ``validate`` or ``test``.

    A shard's checksum is compared with the manifest's when it is first read in a process.

    Raises:
        UserError: if the folder is no shard folder, or the split is absent or empty; when a sample is read, if its
            shard is absent, cut short or changed.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.root, self.split = str(as_path(path)), split
        self.manifest = read_manifest(self.root)
        shards = self.manifest["splits"].get(split, {})
        if not any(row["samples"] for row in shards.values()):
            present = ", ".join(name for name, rows in self.manifest["splits"].items() if rows)
            raise UserError(f"{path} has no samples of split {split!r}; it has: {present or 'none'}")
        self._shards = [(name, row["samples"]) for name, row in sorted(shards.items()) if row["samples"]]
        self._starts = list(accumulate((count for _, count in self._shards), initial=0))
        self._checksums = [shards[name]["sha256"] for name, _ in self._shards]
        self._paths: dict[int, Path] = {}
        self._indices: dict[int, list[list[Any]]] = {}
        self._files: dict[int, int] = {}  # open file descriptors, one a shard and a process
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __getitem__(self, number: int) -> Sample:
        """Read sample ``number`` (0 … len - 1), with its pixels or codes."""
        key, members = self._members(number)
        images: list[np.ndarray] = []
        while (name := f"{len(images)}.png") in members:
            images.append(np.asarray(Image.open(io.BytesIO(members[name]))))
        codes = members.get("codes.npy")
        return Sample(
            key=key,
            info=json.loads(str(members["json"], "utf-8")),
            images=tuple(images),
            codes=None if codes is None else decode_npy(codes),
        )

    def masks(self, number: int, image: int) -> dict[str, np.ndarray]:
        """{finding: (H, W) booleans} of one image of sample ``number``, as far as its source has masks."""
        return masks_of_image(self._members(number)[1], image)

    def info(self, number: int) -> dict[str, Any]:
        """The ``json`` of sample ``number`` alone, without decoding an image."""
        return dict(json.loads(str(self._members(number, only="json")[1]["json"], "utf-8")))

    def infos(self) -> Iterator[dict[str, Any]]:
        """Every sample's ``json``, in order."""
        return (self.info(number) for number in range(len(self)))

    def _members(self, number: int, only: str | None = None) -> tuple[str, dict[str, memoryview]]:
        """Key and members (or one of them) of a sample."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = bisect_right(self._starts, number) - 1
        file = self._open(shard)
        key, places = self._indices[shard][number - self._starts[shard]]
        if only is not None:
            places = {only: places[only]}
        # The members of a sample lie one behind the other: one read for all. And pread, which has no shared
        # file position, so that forked workers cannot disturb each other.
        begin, size = next(iter(places.values()))
        end = begin + size
        for offset, size in places.values():
            begin, end = min(begin, offset), max(end, offset + size)
        span = memoryview(os.pread(file, end - begin, begin))
        if len(span) != end - begin:
            raise UserError(f"shard {self._shards[shard][0]} of {self.root} was cut short while it was being read")
        return key, {name: span[offset - begin : offset - begin + size] for name, (offset, size) in places.items()}

    def _open(self, shard: int) -> int:
        if self._process != os.getpid():
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            name, samples = self._shards[shard]
            if shard not in self._paths:
                self._paths[shard] = checked_shard(self.root, name, self._checksums[shard])
                self._indices[shard] = _index(self._paths[shard], samples, self._checksums[shard])
            self._files[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return self._files[shard]
