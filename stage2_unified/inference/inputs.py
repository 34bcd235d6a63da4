"""Radiographs to be read, wherever they lie: one file, a folder of files, or shards. One at a time, never all.

Of a study of several images the first frontal one stands for it, with the others and the visit before beside it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medunifier.data.images.pixels import fit_square
from medunifier.data.images.radiograph import UnreadableImage, read_image
from medunifier.data.images.views import view_position
from medunifier.data.remote_paths import as_path
from medunifier.data.shards.dataset import MANIFEST, Sample, ShardDataset, read_manifest
from medunifier.data.shards.prior_studies import prior_study_indices
from medunifier.shared.errors import UserError

if TYPE_CHECKING:
    from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".gz")
"""What is looked for in a folder. A file that is named itself may have any name: content tells its kind."""


@dataclass(frozen=True)
class Film:
    """One radiograph: pixels or codes, or the reason why there are neither.

    Attributes:
        key: the path as given, or the study's id.
        view: ViewPosition; "" where unknown, or where the file has a text that is none of the field's terms.
        pixels: (S, S) float32 in [0, 1], the model's size.
        codes: (h, w) integers, from token shards.
        error: why it cannot be read.
        report: what a shard holds beside it: ``findings`` and ``impression``, those that are not empty.
        others: further images of the study that are to be shown with it.
        prior: an image of the visit before.
    """

    key: str
    view: str = ""
    pixels: np.ndarray | None = None
    codes: np.ndarray | None = None
    error: str = ""
    report: dict[str, str] = field(default_factory=dict)
    others: tuple["Film", ...] = ()
    prior: "Film | None" = None


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
            film = read_image(self._paths[number], self._size)
        except UnreadableImage as error:
            return Film(self.keys[number], error=error.reason)
        return Film(self.keys[number], view_position(film.view), film.pixels)


class FolderFilms:
    """Folders of files, each a study."""

    key_name = "path"

    def __init__(self, paths: Sequence[Path], size: int, max_views: int) -> None:
        self._folders: dict[str, list[Path]] = {}
        for path in paths:
            self._folders.setdefault(str(path.parent), []).append(path)
        self.keys, self._size, self._max_views = list(self._folders), size, max_views

    def read(self, number: int) -> Film:
        """A study's readable files, as far as they are shown; an error if it has none."""
        from medunifier.stage2_unified.model.processing.view_selection import (
            choose_views,  # here: no --help waits for torch
        )

        files = FileFilms(self._folders[self.keys[number]], self._size)
        films = [files.read(place) for place in range(len(files.keys))]
        readable = [film for film in films if not film.error]
        if not readable:
            return Film(self.keys[number], error=films[0].error)
        shown = choose_views([film.view for film in readable], self._max_views, None)
        first, *others = [replace(readable[place], key=self.keys[number]) for place in shown]
        return replace(first, others=tuple(others))


class ShardFilms:
    """The studies of some splits of a shard folder: the first frontal image, others if ``max_views`` allows them, and
    one of the visit before if ``prior`` is asked for and there is one."""

    key_name = "study_id"

    def __init__(
        self, place: str, splits: Sequence[str], tokenizer: "FrozenTokenizer", max_views: int = 1, prior: bool = False
    ) -> None:
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
        self._size, self._max_views = tokenizer.image_size, max_views
        self._places: list[tuple[ShardDataset, int, int | None]] = []
        self.keys = []
        for dataset in self._datasets:
            before = prior_study_indices(dataset.infos()) if prior else [None] * len(dataset)
            self._places += [(dataset, number, earlier) for number, earlier in enumerate(before)]
            self.keys += [str(info["study_id"]) for info in dataset.infos()]

    def read(self, number: int) -> Film:
        """One study's images or codes."""
        from medunifier.stage2_unified.model.processing.view_selection import (  # here: no --help waits for torch
            choose_prior_view,
            choose_views,
        )

        dataset, place, before = self._places[number]
        sample = dataset[place]
        shown = choose_views(sample.info["views"], self._max_views, None)
        first, *others = [self._film(sample, view) for view in shown]
        given = {name: sample.info["report"].get(name, "") for name in ("findings", "impression")}
        prior = None
        if before is not None:
            earlier = dataset[before]
            prior = self._film(earlier, choose_prior_view(earlier.info["views"], like=first.view))
        report = {name: text for name, text in given.items() if text}
        return replace(first, report=report, others=tuple(others), prior=prior)

    def _film(self, sample: Sample, view: int) -> Film:
        key, position = sample.info["study_id"], sample.info["views"][view]
        if sample.codes is not None:
            return Film(key, position, codes=sample.codes[view].astype(np.int64))
        image = sample.images[view]
        return Film(key, position, fit_square((image / np.iinfo(image.dtype).max).astype(np.float32), self._size))


def open_films(
    place: str,
    split: str,
    tokenizer: "FrozenTokenizer",
    max_views: int = 1,
    prior: bool = False,
    study_folders: bool = False,
) -> Films:
    """What lies at ``place``: a radiograph, a folder of them, or a folder (or URL) of image or token shards.

    Args:
        place: where.
        split: of shards: one of their splits, or several with commas; "" = all.
        tokenizer: of the model that is to read them.
        max_views: images of a study that it is shown.
        prior: whether it is shown the visit before, where shards have one.
        study_folders: of files: those of one folder are one study.

    Raises:
        UserError: if nothing is there, or ``split`` is given for files, or codes are another tokenizer's.
    """
    path = as_path(place)
    if (path / MANIFEST).is_file():
        splits = [name.strip() for name in split.split(",") if name.strip()]
        return ShardFilms(place, splits, tokenizer, max_views, prior)
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
    if study_folders:
        return FolderFilms(found, tokenizer.image_size, max_views)
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


def seen_of(pipeline: "MedUnifierPipeline", films: Sequence[Film], view: str) -> dict[str, Any]:
    """Studies without an error as the pipeline's methods take them: ``codes``, ``views``, ``priors``.

    Args:
        pipeline: the model.
        films: the studies.
        view: position of an image that names none.
    """
    shown = [(film, *film.others) for film in films]
    earlier = [film.prior for film in films if film.prior is not None]
    codes = iter(codes_of(pipeline, [film for study in shown for film in study] + earlier))
    stacks = [np.stack([next(codes) for _ in study]) for study in shown]
    views = [[film.view or view for film in study] for study in shown]
    priors = [None if film.prior is None else (next(codes), film.prior.view or view) for film in films]
    if all(len(study) == 1 for study in shown):
        return {"codes": np.concatenate(stacks), "views": [study[0] for study in views], "priors": priors}
    return {"codes": stacks, "views": views, "priors": priors}
