"""WebDataset shards with an index of member offsets: deterministic bytes, random access.

A shard is a plain tar that stock ``webdataset.WebDataset`` reads: one sample per study, with members
``{study}.0.png``, ``{study}.1.png``, … or ``{study}.codes.npy``, and ``{study}.json``. ``{shard}.index.json`` beside
it is rebuilt from the tar if missing.
"""

import io
import json
import math
import os
import re
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from medunifier.data.images.masks import masks_of_image
from medunifier.data.images.pixels import decode_png
from medunifier.data.remote_paths import RemotePath, as_path, read_at_most
from medunifier.data.shards.cache import checked_shard
from medunifier.data.shards.index import Members, read_index, write_index
from medunifier.shared.artifacts import FORMAT_VERSION, atomic_file, read_json, sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_JSON_BYTES, bare_name, decode_json, parse_json

MANIFEST = "manifest.json"

MAX_OPEN_SHARDS = 32
"""Shards that a data set keeps open per process: MIMIC-CXR has 890, and many systems allow 256 open files."""


@dataclass(frozen=True)
class Sample:
    """One study read from a shard.

    ``images`` are (H, W) uint8 or uint16 arrays (image shards), ``codes`` (images, h, w) integers (token
    shards); the other is empty. ``info`` is the sample's ``json``: study_id, patient_id, views, split,
    report, labels, source, and visit if the source has the order of a patient's studies. ``prior`` is the prior
    study, set by datasets that look it up.
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
    """Write a tar and its index atomically; the bytes depend only on the samples (no times, no owners).

    Args:
        path: the shard's final path.
        samples: (key, {member's extension: bytes}) in the order in which to write them.

    Returns:
        The manifest's row: ``{"samples", "bytes", "sha256"}``.
    """
    rows: list[tuple[str, Members]] = []
    with atomic_file(path) as partial:
        with partial.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in samples:
                rows.append((key, {}))
                for extension, content in members.items():
                    entry = tarfile.TarInfo(bare_name(f"{key}.{extension}", str(path)))
                    entry.size, entry.mode = len(content), 0o644
                    # Counted here, since parsing the headers again takes as long as writing them.
                    rows[-1][1][extension] = (file.tell() + tarfile.BLOCKSIZE, entry.size)
                    tar.addfile(entry, io.BytesIO(content))
        row: dict[str, Any] = {"samples": len(rows), "bytes": partial.stat().st_size, "sha256": sha256_file(partial)}
    # After the shard, so that an index never exists without its shard.
    write_index(path, rows, row["sha256"])
    return row


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode (H, W) uint8 or uint16 pixels as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_npy(array: np.ndarray) -> bytes:
    """Encode an array as the bytes of a ``.npy`` file, without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def decode_npy(content: bytes | memoryview) -> np.ndarray:
    """Decode the bytes of :func:`encode_npy` to a writable array.

    ``np.load`` parses the header as a Python literal, which takes 80 of the 90 µs that it needs for 256 codes.
    All shards of a run share a few headers, so parsed headers are cached.

    Raises:
        ValueError: if it is not such a file, is truncated, or needs pickle.
    """
    if bytes(content[:8]) != _NPY_MAGIC:
        raise ValueError("not a .npy file of version 1.0")
    begin = _NPY_START + int.from_bytes(content[8:_NPY_START], "little")
    dtype, count, shape, order = _npy_layout(bytes(content[:begin]))
    return np.frombuffer(content, dtype, count, begin).reshape(shape, order=order).copy()


_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_START = 10  # magic, version 1.0, length of the header that follows


@lru_cache(maxsize=1024)
def _npy_layout(header: bytes) -> tuple[np.dtype[Any], int, tuple[int, ...], Literal["C", "F"]]:
    file = io.BytesIO(header)
    try:
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # of Python's parser: SyntaxError, TokenError, RecursionError, …
        raise ValueError(f"no valid .npy header: {error}") from error
    if dtype.hasobject:
        raise ValueError("arrays of Python objects are not supported")
    return dtype, math.prod(shape), shape, "F" if fortran_order else "C"


def encode_info(info: Mapping[str, Any]) -> bytes:
    """Encode a sample's ``json`` member."""
    return json.dumps(info, sort_keys=True, ensure_ascii=False).encode()


def read_manifest(root: str | Path) -> dict[str, Any]:
    """Return the ``manifest.json`` of a shard folder, local or at an fsspec URL.

    Raises:
        UserError: if the folder has none, or its format version is not supported, or the manifest names shards
            outside the folder or has invalid values.
    """
    root = as_path(root)
    what = "a shard folder (made by `medunifier ingest` or `tokenize`)"
    if isinstance(root, RemotePath):
        address = f"{root}/{MANIFEST}"
        try:
            manifest = parse_json(read_at_most(root / MANIFEST, MAX_JSON_BYTES), address, what)
        except OSError as error:
            reason = "not found" if isinstance(error, FileNotFoundError) else error.strerror
            raise UserError(f"{address} cannot be read: {reason}; pass the address of a shard folder") from None
    else:
        manifest = read_json(root / MANIFEST, what)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{root} has format version {version}, this medunifier reads {FORMAT_VERSION}")
    _check_splits(manifest.get("splits"), f"{root}/{MANIFEST}")
    for names, expected in _MANIFEST_TYPES.items():
        parent, _, name = names.rpartition(".")  # the table lists a parent before its entries
        container = manifest.get(parent, {}) if parent else manifest
        if not isinstance(container.get(name, expected()), expected):
            raise UserError(f"{root}/{MANIFEST} has no valid {names}: expected {expected.__name__}")
    if "tokenizer" in manifest and type(manifest["tokenizer"].get("codes")) is not int:
        raise UserError(f"{root}/{MANIFEST} has no valid tokenizer.codes: expected the size of the codebook")
    return dict(manifest)


def check_codebook_size(manifest: Mapping[str, Any], codebook_size: int, where: str | Path) -> None:
    """Check the codebook size that bounds the codes of token shards when they are read; image shards have none.

    Raises:
        UserError: if the manifest states another than the tokenizer of its fingerprint has.
    """
    found = manifest.get("tokenizer", {}).get("codes", codebook_size)
    if found != codebook_size:
        raise UserError(
            f"{where} states {found} codes, but its tokenizer has {codebook_size}: its manifest was changed; "
            "tokenize the data again"
        )


def _check_splits(splits: Any, where: str) -> None:
    """Check manifest entries, of any type, that are used as paths, sample counts or checksums.

    Raises:
        UserError: for a shard name that contains a folder, or a row without sample count or checksum.
    """
    if not isinstance(splits, dict) or not all(isinstance(rows, dict) for rows in splits.values()):
        raise UserError(f"{where} has no valid splits: it is not a manifest of shards")
    for split, rows in splits.items():
        bare_name(split, where)
        for name, row in rows.items():
            bare_name(name, where)
            samples, checksum = (row.get("samples"), row.get("sha256")) if isinstance(row, dict) else (None, None)
            if type(samples) is not int or not 0 <= samples <= _MAX_SAMPLES:
                raise UserError(f"{where} has no valid number of samples for shard {name}")
            # The checksum becomes the file name of a remote shard's cached copy.
            if not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
                raise UserError(f"{where} has no valid SHA-256 checksum for shard {name}")


_MANIFEST_TYPES: dict[str, type] = {
    "source": str, "counts": dict, "transform": dict, "transform.text": str, "tokenizer": dict,
    "tokenizer.fingerprint": str, "tokenizer.precision": str,
}  # fmt: skip
"""Types of the other manifest entries that readers rely on."""
_SHA256 = re.compile("[0-9a-f]{64}")
_MAX_SAMPLES = 2**40
"""Of a shard; larger numbers would not fit into the length of a data set."""


_DAMAGE = (ValueError, TypeError, ArithmeticError, LookupError, SyntaxError, MemoryError)
"""Exceptions that decoders raise on damaged members."""


def _decode_sample(key: str, members: Mapping[str, memoryview], codebook_size: int) -> Sample:
    """Decode a sample; raise one of ``_DAMAGE`` if its members are damaged or inconsistent."""
    info = _decode_info(members["json"])
    images: list[np.ndarray] = []
    while (name := f"{len(images)}.png") in members:
        images.append(decode_png(members[name]))
    codes = decode_npy(members["codes.npy"]) if "codes.npy" in members else None
    if codes is not None and (codes.ndim != 3 or codes.dtype.kind not in "iu"):
        raise ValueError(f"codes of shape {codes.shape}, {codes.dtype}; expected integers (images, h, w)")
    if codes is not None and codes.size and not 0 <= codes.min() <= codes.max() < codebook_size:
        raise ValueError(f"codes from {codes.min()} to {codes.max()}, but the codebook has {codebook_size} entries")
    views = len(info["views"])
    if (codes is not None and len(codes) != views) or (len(images) != views and (images or codes is None)):
        raise ValueError(f"{len(images) if codes is None else len(codes)} images, but {views} views in its json")
    return Sample(key=key, info=info, images=tuple(images), codes=codes)


def _decode_info(content: memoryview) -> dict[str, Any]:
    """Decode a sample's ``json`` and check the types that readers rely on."""
    info: dict[str, Any] = decode_json(content)
    report, labels, views = info.get("report", {}), info.get("labels", {}), info.get("views")
    if (
        type(info.get("study_id")) is not str
        or type(views) is not list
        or type(report) is not dict
        or type(labels) is not dict
        or not {str}.issuperset(map(type, views))
        or not {str}.issuperset(map(type, report.values()))
        or not {int}.issuperset(map(type, labels.values()))
        or not {str, type(None)}.issuperset((type(info.get("patient_id")), type(info.get("split"))))
        or type(info.get("visit", 0)) is not int
    ):
        raise ValueError("its json is not a study's: check study_id, patient_id, split, visit, views, report, labels")
    return info


class _OpenFile:
    """A file descriptor, closed with its last reference: a thread may still read a file that was evicted."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardDataset:
    """Map-style dataset of the samples of one split, from local or remote shards.

    Args:
        path: folder or fsspec URL with a ``manifest.json``; remote shards are downloaded to the cache on first use.
        split: ``train``, ``validate`` or ``test``.

    A shard's checksum is verified against the manifest when it is first read in a process.

    Raises:
        UserError: if the folder is not a shard folder, or the split is absent or empty; when a sample is read, if its
            shard is absent, truncated or changed.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.root, self.split = str(as_path(path)), split
        self.manifest = read_manifest(self.root)
        self._codebook_size: int = self.manifest.get("tokenizer", {}).get("codes", 2**31)
        shards = self.manifest["splits"].get(split, {})
        if not any(row["samples"] for row in shards.values()):
            present = ", ".join(name for name, rows in self.manifest["splits"].items() if rows)
            raise UserError(f"{path} has no samples of split {split!r}; it has: {present or 'none'}")
        self._shards = [(name, row["samples"]) for name, row in sorted(shards.items()) if row["samples"]]
        self._starts = list(accumulate((count for _, count in self._shards), initial=0))
        self._checksums = [shards[name]["sha256"] for name, _ in self._shards]
        self._paths: dict[int, Path] = {}
        self._indices: dict[int, list[tuple[str, Members]]] = {}
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()  # of this process, least recently used first
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __getitem__(self, number: int) -> Sample:
        """Read sample ``number`` (0 … len - 1), with its pixels or codes."""
        key, members = self._members(number)
        try:
            return _decode_sample(key, members, self._codebook_size)
        except _DAMAGE as error:
            raise self._damaged(number, key, error) from error

    def masks(self, number: int, image: int) -> dict[str, np.ndarray]:
        """Return {finding: (H, W) bool} of one image of sample ``number``; empty without masks."""
        key, members = self._members(number)
        try:
            return masks_of_image(members, image)
        except _DAMAGE as error:
            raise self._damaged(number, key, error) from error

    def info(self, number: int) -> dict[str, Any]:
        """Return the ``json`` of sample ``number`` without decoding images."""
        key, members = self._members(number, only="json")
        try:
            return _decode_info(members["json"])
        except _DAMAGE as error:
            raise self._damaged(number, key, error) from error

    def _damaged(self, number: int, key: str, error: Exception) -> UserError:
        name, _ = self._shards[bisect_right(self._starts, number) - 1]
        reason = " ".join(str(error).split())[:200]
        return UserError(
            f"sample {key} of shard {name} in {self.root} cannot be read: {reason}; make the shards again"
        )

    def infos(self) -> Iterator[dict[str, Any]]:
        """Yield every sample's ``json``, in order."""
        return (self.info(number) for number in range(len(self)))

    def _members(self, number: int, only: str | None = None) -> tuple[str, dict[str, memoryview]]:
        """Return the key and the members (or only one of them) of a sample."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = bisect_right(self._starts, number) - 1
        file = self._open(shard)
        key, ranges = self._indices[shard][number - self._starts[shard]]
        if only is not None:
            ranges = {only: ranges[only]}
        # The members of a sample are contiguous: one read for all. pread has no shared file position, so forked
        # workers cannot interfere.
        begin, size = next(iter(ranges.values()))
        end = begin + size
        for offset, size in ranges.values():
            begin, end = min(begin, offset), max(end, offset + size)
        span = memoryview(os.pread(file.descriptor, end - begin, begin))
        if len(span) != end - begin:
            raise UserError(f"shard {self._shards[shard][0]} of {self.root} was cut short while being read")
        return key, {name: span[offset - begin : offset - begin + size] for name, (offset, size) in ranges.items()}

    def _open(self, shard: int) -> "_OpenFile":
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        file = self._files.get(shard)
        if file is None:
            name, samples = self._shards[shard]
            if shard not in self._paths:
                self._paths[shard] = checked_shard(self.root, name, self._checksums[shard])
                self._indices[shard] = read_index(self._paths[shard], samples, self._checksums[shard])
            file = self._files[shard] = _OpenFile(self._paths[shard])
            while len(self._files) > MAX_OPEN_SHARDS:
                self._files.popitem(last=False)
        self._files.move_to_end(shard)
        return file
