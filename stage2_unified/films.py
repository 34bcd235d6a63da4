"""Radiographs to be read, wherever they lie: one file, a folder of files, or shards. One at a time, never all."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from data.pixels import fit_square
from data.places import as_path
from data.radiograph import UnreadableImage, read_film
from data.shards import MANIFEST, ShardDataset, read_manifest
from shared.errors import UserError

if TYPE_CHECKING:
    from stage1_tokenizer.frozen import FrozenTokenizer
    from stage2_unified.inference import MedUnifierPipeline

SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".gz")
"""What is looked for in a folder. A file that is named itself may have any name: content tells its kind."""


@dataclass(frozen=True)
class Film:
    """One radiograph: pixels or codes, or the reason why there are neither.

    Attributes:
        key: the path as given, or the study's id.
        view: ViewPosition, "" where unknown.
        pixels: (S, S) float32 in [0, 1], the model's size.
        codes: (h, w) integers, from token shards.
        error: why it cannot be read.
        report: what a shard holds beside it: ``findings`` and ``impression``, those that are not empty.
    """

    key: str
    view: str = ""
    pixels: np.ndarray | None = None
    codes: np.ndarray | None = None
    error: str = ""
    report: dict[str, str] = field(default_factory=dict)


class Films(Protocol):
    """Radiographs by number. ``key_name`` says what their keys are: ``path`` or ``study_id``."""

    @property
    def key_name(self) -> str: ...
    @property
    def keys(self) -> Sequence[str]: ...

    def read(self, number: int) -> Film:
        """Film ``number``; damage is told in its ``error``."""


class FileFilms:
    """Files: DICOM, PNG, JPEG."""

    key_name = "path"

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self._paths, self._size = list(paths), size
        self.keys = [str(path) for path in paths]

    def read(self, number: int) -> Film:
        """One file, scaled to the model's size."""
        try:
            film = read_film(self._paths[number], self._size)
        except UnreadableImage as error:
            return Film(self.keys[number], error=error.reason)
        return Film(self.keys[number], film.view, film.pixels)


class ShardFilms:
    """One image a study, the first frontal one, of some splits of a shard folder."""

    key_name = "study_id"

    def __init__(self, place: str, splits: Sequence[str], tokenizer: "FrozenTokenizer") -> None:
        manifest = read_manifest(place)
        made_by = manifest.get("tokenizer", {}).get("fingerprint", tokenizer.fingerprint)
        if made_by != tokenizer.fingerprint:
            raise UserError(
                f"the codes in {place} were made by tokenizer {str(made_by)[:12]}, the model reads those of "
                f"{tokenizer.fingerprint[:12]}: give the image shards"
            )
        present = [name for name, rows in manifest["splits"].items() if any(r["samples"] for r in rows.values())]
        if not present:
            raise UserError(f"{place} holds no samples")
        self._datasets = [ShardDataset(place, split) for split in splits or present]
        self._size = tokenizer.image_size
        self._places = [(dataset, number) for dataset in self._datasets for number in range(len(dataset))]
        self.keys = [dataset.info(number)["study_id"] for dataset, number in self._places]

    def read(self, number: int) -> Film:
        """One study's image or codes."""
        from stage2_unified.sequences import choose_view  # here: torch and transformers, which no --help waits for

        dataset, place = self._places[number]
        sample = dataset[place]
        view = choose_view(sample.info["views"], None)
        position = sample.info["views"][view]
        given = {name: sample.info["report"].get(name, "") for name in ("findings", "impression")}
        report = {name: text for name, text in given.items() if text}
        if sample.codes is not None:
            return Film(sample.info["study_id"], position, codes=sample.codes[view].astype(np.int64), report=report)
        image = sample.images[view]
        pixels = (image / np.iinfo(image.dtype).max).astype(np.float32)
        return Film(sample.info["study_id"], position, fit_square(pixels, self._size), report=report)


def open_films(place: str, split: str, tokenizer: "FrozenTokenizer") -> Films:
    """What lies at ``place``: a radiograph, a folder of them, or a folder (or URL) of image or token shards.

    Args:
        place: where.
        split: of shards: one of their splits, or several with commas; "" = all.
        tokenizer: of the model that is to read them.

    Raises:
        UserError: if nothing is there, or ``split`` is given for files, or codes are another tokenizer's.
    """
    path = as_path(place)
    if (path / MANIFEST).is_file():
        return ShardFilms(place, [name.strip() for name in split.split(",") if name.strip()], tokenizer)
    if split:
        raise UserError(f"{place} is no shard folder: --split is for shards")
    if path.is_file():
        return FileFilms([path], tokenizer.image_size)
    if not path.is_dir():
        raise UserError(f"{place} not found: give a radiograph, a folder of radiographs, or a shard folder")
    found = sorted(
        entry for entry in path.rglob("*")
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )  # fmt: skip
    if not found:
        raise UserError(f"no radiograph under {place}: looked for {', '.join(sorted(SUFFIXES))}, or shards")
    return FileFilms(found, tokenizer.image_size)


def read_batches(films: Films, begin: int, batch_size: int, end: int | None = None) -> Iterator[list[Film]]:
    """Films from number ``begin`` to ``end`` (the last), ``batch_size`` at a time."""
    end = len(films.keys) if end is None else min(end, len(films.keys))
    for first in range(begin, end, batch_size):
        yield [films.read(number) for number in range(first, min(first + batch_size, end))]


def keys_digest(films: Films) -> str:
    """SHA-256 over the keys in order: whether two runs read the same films."""
    return hashlib.sha256("\n".join(films.keys).encode(errors="surrogateescape")).hexdigest()


def codes_of(pipeline: "MedUnifierPipeline", films: Sequence[Film]) -> np.ndarray:
    """(N, h, w) codes of films without an error; those of token shards as they are."""
    pixels = {number: film.pixels for number, film in enumerate(films) if film.pixels is not None}
    codes = {number: film.codes for number, film in enumerate(films) if film.codes is not None}
    if pixels:
        codes |= dict(zip(pixels, pipeline.encode(np.stack(list(pixels.values()))), strict=True))
    return np.stack([codes[number] for number in range(len(films))])
