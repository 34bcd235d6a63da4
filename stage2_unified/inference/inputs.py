"""Inputs for inference: one file, a folder of files, or shards, loaded one study at a time.

A study is represented by its first frontal image, with its other images and an image of the prior study attached.
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medunifier.data.files.walk import find_images, summary
from medunifier.data.images.radiograph import UnreadableImage, check_radiograph, read_image
from medunifier.data.images.resize import fit_square
from medunifier.data.images.views import view_position
from medunifier.data.records import Problem
from medunifier.data.remote_paths import as_path
from medunifier.data.shards.dataset import MANIFEST, Sample, ShardDataset, check_codebook_size, read_manifest
from medunifier.data.shards.prior_studies import prior_study_indices
from medunifier.shared.errors import UserError

if TYPE_CHECKING:
    from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

_OF_ANY_KIND = ("OT", "SC")
"""Modalities of scanned and secondary images, such as our synthetic ones, which may show a radiograph."""

_NAMED = 5
"""Files left out that are named, for each reason."""


@dataclass(frozen=True)
class StudyImage:
    """One radiograph as pixels or codes, or the error that prevented reading it.

    Attributes:
        key: the path as passed, or the study id.
        view: ViewPosition; "" if unknown, or if the file's value is not a defined term.
        pixels: (S, S) float32 in [0, 1], at the model's resolution.
        codes: (h, w) integers, from token shards.
        error: why it cannot be read, or "".
        report: non-empty ``findings`` and ``impression`` from a shard.
        others: further images of the same study that are model inputs too.
        prior: an image of the prior study.
    """

    key: str
    view: str = ""
    pixels: np.ndarray | None = None
    codes: np.ndarray | None = None
    error: str = ""
    report: dict[str, str] = field(default_factory=dict)
    others: tuple["StudyImage", ...] = ()
    prior: "StudyImage | None" = None


class ImageSource(Protocol):
    """Indexed inputs. ``key_name`` is the kind of their keys: ``path`` or ``study_id``."""

    @property
    def key_name(self) -> str: ...
    @property
    def keys(self) -> Sequence[str]: ...

    def read(self, index: int) -> StudyImage:
        """Read input ``index``. An unreadable file is returned with its ``error`` set."""


class FileImages:
    """DICOM, PNG or JPEG files, each a study."""

    key_name = "path"

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self._paths, self._size = list(paths), size
        self.keys = [str(path) for path in paths]

    def read(self, index: int) -> StudyImage:
        """Read one file, scaled to the model's resolution."""
        try:
            radiograph = read_image(self._paths[index], self._size)
            check_radiograph(radiograph, _OF_ANY_KIND)
        except UnreadableImage as error:
            return StudyImage(self.keys[index], error=error.reason)
        return StudyImage(self.keys[index], view_position(radiograph.view), radiograph.pixels)


class FolderStudies:
    """Folders of files, each a study."""

    key_name = "path"

    def __init__(self, paths: Sequence[Path], size: int, max_views: int) -> None:
        self._folders: dict[str, list[Path]] = {}
        for path in paths:
            self._folders.setdefault(str(path.parent), []).append(path)
        self.keys, self._size, self._max_views = list(self._folders), size, max_views

    def read(self, index: int) -> StudyImage:
        """Read up to ``max_views`` images of a study; unreadable files are skipped unless all are."""
        # Imported here so that --help does not wait for torch.
        from medunifier.stage2_unified.model.processing.view_selection import choose_views

        files = FileImages(self._folders[self.keys[index]], self._size)
        images = [files.read(number) for number in range(len(files.keys))]
        readable = [image for image in images if not image.error]
        if not readable:
            return StudyImage(self.keys[index], error=images[0].error)
        chosen = choose_views([image.view for image in readable], self._max_views, None)
        first, *others = [replace(readable[number], key=self.keys[index]) for number in chosen]
        return replace(first, others=tuple(others))


class ShardStudies:
    """The studies of some splits of a shard folder.

    The first frontal image of each, others up to ``max_views``, with ``prior`` also an image of the prior study.
    """

    key_name = "study_id"

    def __init__(
        self,
        folder: str,
        splits: Sequence[str],
        tokenizer: "FrozenTokenizer",
        max_views: int = 1,
        prior: bool = False,
    ) -> None:
        manifest = read_manifest(folder)
        found = manifest.get("tokenizer", {}).get("fingerprint", tokenizer.fingerprint)
        if found != tokenizer.fingerprint:
            raise UserError(
                f"{folder} was tokenized with tokenizer {str(found)[:12]}, but the model expects "
                f"{tokenizer.fingerprint[:12]}. Pass the image shards, or tokenize them again"
            )
        check_codebook_size(manifest, tokenizer.codebook_size, folder)
        present = [name for name, rows in manifest["splits"].items() if any(r["samples"] for r in rows.values())]
        if not present:
            raise UserError(f"{folder} contains no samples")
        self._datasets = [ShardDataset(folder, split) for split in splits or present]
        self._size, self._max_views = tokenizer.image_size, max_views
        self._studies: list[tuple[ShardDataset, int, int | None]] = []  # data set, index, index of the prior study
        self.keys = []
        for dataset in self._datasets:
            priors = prior_study_indices(dataset.infos()) if prior else [None] * len(dataset)
            self._studies += [(dataset, number, prior_number) for number, prior_number in enumerate(priors)]
            self.keys += [str(info["study_id"]) for info in dataset.infos()]

    def read(self, index: int) -> StudyImage:
        """Return the images or codes of one study."""
        # Imported here so that --help does not wait for torch.
        from medunifier.stage2_unified.model.processing.view_selection import (
            choose_prior_view,
            choose_views,
        )

        dataset, number, prior_number = self._studies[index]
        sample = dataset[number]
        chosen = choose_views(sample.info["views"], self._max_views, None)
        first, *others = [self._image(sample, view) for view in chosen]
        prior = None
        if prior_number is not None:
            prior_sample = dataset[prior_number]
            view = choose_prior_view(prior_sample.info["views"], like=first.view)
            prior = self._image(prior_sample, view)
        sections = {name: sample.info["report"].get(name, "") for name in ("findings", "impression")}
        report = {name: text for name, text in sections.items() if text}
        return replace(first, report=report, others=tuple(others), prior=prior)

    def _image(self, sample: Sample, view: int) -> StudyImage:
        key, position = sample.info["study_id"], sample.info["views"][view]
        if sample.codes is not None:
            return StudyImage(key, position, codes=sample.codes[view].astype(np.int64))
        image = sample.images[view]
        pixels = (image / np.iinfo(image.dtype).max).astype(np.float32)
        return StudyImage(key, position, fit_square(pixels, self._size))


def open_inputs(
    location: str,
    split: str,
    tokenizer: "FrozenTokenizer",
    max_views: int = 1,
    prior: bool = False,
    study_folders: bool = False,
    outside_root: bool = False,
) -> ImageSource:
    """Open a radiograph, a folder of radiographs, or a folder (or URL) of image or token shards.

    The images of a folder are recognized by content, whatever their names. What is left out of it is counted, by
    reason, on standard error.

    Args:
        location: path or URL.
        split: for shards: a split, or several separated by commas; "" = all.
        tokenizer: the image tokenizer of the model.
        max_views: maximum images per study.
        prior: for shards: whether to load an image of the prior study.
        study_folders: for files: treat the files of one folder as one study.
        outside_root: for files: follow links that leave the folder.

    Raises:
        UserError: if nothing is found, ``split`` is set for files, or the codes are those of another tokenizer.
    """
    path = as_path(location)
    if (path / MANIFEST).is_file():
        splits = [name.strip() for name in split.split(",") if name.strip()]
        return ShardStudies(location, splits, tokenizer, max_views, prior)
    if split:
        raise UserError(f"{location} is not a shard folder: --split applies only to shards")
    if path.is_file():
        return FileImages([path], tokenizer.image_size)
    if not path.is_dir():
        raise UserError(f"{location} not found: pass a radiograph, a folder of radiographs, or a shard folder")
    found = image_paths(path, outside_root)
    if not found:
        raise UserError(f"no radiograph under {location}: expected DICOM, PNG or JPEG files, or shards")
    if study_folders:
        return FolderStudies(found, tokenizer.image_size, max_views)
    return FileImages(found, tokenizer.image_size)


def image_paths(folder: Path, outside_root: bool = False) -> list[Path]:
    """Return the images below a folder, damaged ones included; report on standard error what was left out.

    A line per reason, with the count and some of the files.
    """
    left_out: list[Problem] = []
    found = [image.path for image in find_images(folder, left_out, outside_root)]
    if left_out:
        by_reason: dict[str, list[Problem]] = defaultdict(list)
        for problem in left_out:
            by_reason[problem.reason].append(problem)
        for problems in by_reason.values():
            names = ", ".join(problem.where for problem in problems[:_NAMED])
            more = f", … and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
            print(f"left out: {summary(problems, '--outside_root')}: {names}{more}", file=sys.stderr)
    return found


def read_batches(
    source: ImageSource, begin: int, batch_size: int, end: int | None = None
) -> Iterator[list[StudyImage]]:
    """Yield inputs ``begin`` to ``end`` (exclusive; None = all), ``batch_size`` at a time."""
    end = len(source.keys) if end is None else min(end, len(source.keys))
    for first in range(begin, end, batch_size):
        yield [source.read(number) for number in range(first, min(first + batch_size, end))]


def keys_digest(source: ImageSource) -> str:
    """Return the SHA-256 of the keys in order, equal for two runs over the same inputs."""
    return hashlib.sha256("\n".join(source.keys).encode(errors="surrogateescape")).hexdigest()


def codes_of(pipeline: "MedUnifierPipeline", images: Sequence[StudyImage]) -> np.ndarray:
    """Return the (N, h, w) codes of readable images; codes from token shards are passed through."""
    pixels = {number: image.pixels for number, image in enumerate(images) if image.pixels is not None}
    codes = {number: image.codes for number, image in enumerate(images) if image.codes is not None}
    if pixels:
        codes |= dict(zip(pixels, pipeline.encode(np.stack(list(pixels.values()))), strict=True))
    return np.stack([codes[number] for number in range(len(images))])


def study_inputs(pipeline: "MedUnifierPipeline", studies: Sequence[StudyImage], view: str) -> dict[str, Any]:
    """Return readable studies as arguments for the pipeline's methods: ``codes``, ``views``, ``priors``.

    Args:
        pipeline: the model.
        studies: the studies.
        view: position for images that do not specify one.
    """
    image_lists = [(study, *study.others) for study in studies]
    prior_images = [study.prior for study in studies if study.prior is not None]
    codes = iter(codes_of(pipeline, [image for images in image_lists for image in images] + prior_images))
    stacks = [np.stack([next(codes) for _ in images]) for images in image_lists]
    views = [[image.view or view for image in images] for images in image_lists]
    priors = [None if study.prior is None else (next(codes), study.prior.view or view) for study in studies]
    if all(len(images) == 1 for images in image_lists):
        return {"codes": np.concatenate(stacks), "views": [positions[0] for positions in views], "priors": priors}
    return {"codes": stacks, "views": views, "priors": priors}
