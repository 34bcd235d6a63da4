"""The studies that a task is evaluated on: a reproducible sample of one split, with one image per study."""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from medunifier.data.shards.dataset import Sample, ShardDataset, check_codebook_size, read_manifest
from medunifier.shared.artifacts import canonical_json
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.processing.report_codec import normalise_report, sections_of
from medunifier.stage2_unified.model.processing.view_selection import choose_view
from medunifier.stage2_unified.model.vocabulary import view_name


class ImageTokenizer(Protocol):
    """The used part of the frozen tokenizer's interface (`medunifier.stage1_tokenizer.frozen.FrozenTokenizer`)."""

    fingerprint: str

    @property
    def codebook_size(self) -> int: ...

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""

    def encode_images(self, images: Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """Encode N (H, W) uint8 or uint16 arrays to (N, h, w) int64 codes."""


@dataclass(frozen=True)
class Studies:
    """N studies with one image each, in the order of the shards.

    Attributes:
        ids, patients: pseudonyms.
        views: ViewPosition of the image.
        reports: ``{"findings", "impression"}``; a section that is not evaluated is "".
        labels: ``{finding: 1 | 0 | -1}``.
        numbers: index of each sample in its split.
        image_numbers: index of the image in its study.
    """

    ids: list[str]
    patients: list[str]
    views: list[str]
    reports: list[dict[str, str]]
    labels: list[dict[str, int]]
    numbers: list[int]
    image_numbers: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def texts(self) -> list[str]:
        """Each report on one line."""
        return [report_line(report) for report in self.reports]

    @cached_property
    def text_ids(self) -> np.ndarray:
        """(N,) integers, equal where the normalised reports are equal, as in training."""
        return np.unique([normalise_report(text) for text in self.texts], return_inverse=True)[1]

    @cached_property
    def labels_digest(self) -> str:
        """SHA-256 of ids and labels; equal for results with the same ground truth."""
        rows = [[name, dict(sorted(labels.items()))] for name, labels in zip(self.ids, self.labels, strict=True)]
        return hashlib.sha256(canonical_json(rows)).hexdigest()


def report_line(report: dict[str, str]) -> str:
    """Join findings and impression on one line."""
    return " ".join(text for text in (report["findings"], report["impression"]) if text)


class EvaluationData:
    """Read the studies of a shard folder, of images or of codes; samples and codes are cached.

    Args:
        path: shard folder with a manifest.
        tokenizer: tokenizer of the evaluated model; it encodes the images of image shards. None if neither images
            nor codes are read.
        seed: of the samples of studies.
        sections: sections that make up the reports; default: those of the manifest.
        ids: use these studies only, in every split but ``train``; all of them must exist.

    Raises:
        UserError: if the folder is no shard folder, or holds codes of another tokenizer.
    """

    def __init__(
        self,
        path: str,
        tokenizer: ImageTokenizer | None,
        seed: int = 0,
        sections: str | None = None,
        ids: Collection[str] | None = None,
    ) -> None:
        self.path, self._tokenizer, self._seed = str(path), tokenizer, seed
        self.manifest = read_manifest(path)
        recorded = str(self.manifest.get("transform", {}).get("text", "findings+impression"))
        self.sections = recorded if sections is None else "+".join(sections_of(sections))
        self._ids = None if ids is None else set(ids)
        self.has_images = "tokenizer" not in self.manifest
        self._datasets: dict[str, ShardDataset] = {}
        self._subsets: dict[tuple[str, int, bool], Studies] = {}
        self._codes: dict[int, tuple[Studies, np.ndarray]] = {}
        found = self.manifest.get("tokenizer", {}).get("fingerprint")
        if not self.has_images and tokenizer is not None and found != tokenizer.fingerprint:
            raise UserError(
                f"{path} was tokenized with tokenizer {str(found)[:12]}, but the model expects "
                f"{tokenizer.fingerprint[:12]}. Pass the image shards, or tokenize them again"
            )
        if tokenizer is not None:
            check_codebook_size(self.manifest, tokenizer.codebook_size, path)

    def has_split(self, split: str) -> bool:
        """Return whether the split has samples."""
        return any(row["samples"] for row in self.manifest["splits"].get(split, {}).values())

    def dataset(self, split: str) -> ShardDataset:
        """Return the samples of a split."""
        if split not in self._datasets:
            self._datasets[split] = ShardDataset(self.path, split)
        return self._datasets[split]

    def studies(self, split: str, limit: int = 0, *, with_text: bool = True) -> Studies:
        """Sample ``limit`` studies (0 = all) without replacement; the sample depends on data and seed alone.

        Studies without a frontal image or one of unknown position are excluded; with ``with_text`` also those
        without a report.

        Raises:
            UserError: if no study remains.
        """
        key = (split, limit, with_text)
        if key not in self._subsets:
            self._subsets[key] = self._sample(*key)
        return self._subsets[key]

    def _sample(self, split: str, limit: int, with_text: bool) -> Studies:
        dataset = self.dataset(split)
        order = np.random.default_rng(self._seed).permutation(len(dataset))
        ids = None if split == "train" else self._ids
        if ids is not None:
            self._check_ids(ids, split)
        chosen: list[tuple[int, dict[str, Any], int]] = []
        for number in order:
            info = dataset.info(int(number))
            if ids is not None and info["study_id"] not in ids:
                continue
            view = choose_view(info["views"], None)
            if view_name(info["views"][view]) != "lateral" and (not with_text or self._report(info)):
                chosen.append((int(number), info, view))
            if len(chosen) == limit:  # never with limit 0
                break
        if not chosen:
            what = "a frontal radiograph and a report" if with_text else "a frontal radiograph"
            raise UserError(
                f"no study of split {split!r} in {self.path} has {what} (sections {self.sections}): "
                "this task cannot be evaluated on it"
            )
        chosen.sort(key=lambda row: row[0])
        empty = {"findings": "", "impression": ""}
        return Studies(
            ids=[info["study_id"] for _, info, _ in chosen],
            patients=[info["patient_id"] for _, info, _ in chosen],
            views=[info["views"][view] for _, info, view in chosen],
            reports=[empty | self._report(info) for _, info, _ in chosen],
            labels=[info["labels"] for _, info, _ in chosen],
            numbers=[number for number, _, _ in chosen],
            image_numbers=[view for _, _, view in chosen],
        )

    def _check_ids(self, ids: set[str], split: str) -> None:
        absent = ids - {info["study_id"] for info in self.dataset(split).infos()}
        if absent:
            raise UserError(
                f"{len(absent)} of the {len(ids)} ids are not in split {split!r} of {self.path}, such as "
                f"{min(absent)}: they come from other data, or were made with another pseudonym key"
            )

    def _report(self, info: dict[str, Any]) -> dict[str, str]:
        """Return the evaluated sections that are not empty."""
        report = info["report"]
        return {name: report[name] for name in self.sections.split("+") if report.get(name, "").strip()}

    def all_labels_and_texts(self, split: str) -> tuple[list[dict[str, int]], str]:
        """Return the labels of every study with a report, and the most frequent report, for trivial baselines."""
        reports: Counter[str] = Counter()
        originals: dict[str, str] = {}  # normalised report -> its first original wording
        labels = []
        for info in self.dataset(split).infos():
            if report := self._report(info):
                text = " ".join(report.values())
                key = normalise_report(text)
                reports[key] += 1
                originals.setdefault(key, text)
                labels.append(info["labels"])
        if not labels:
            return [], ""
        return labels, originals[max(reports, key=lambda key: (reports[key], key))]

    def pixels(self, split: str, studies: Studies) -> np.ndarray:
        """Return the images as stored: (N, H, W) uint8 or uint16.

        Raises:
            UserError: if the shards hold codes, or images of a size other than the model's.
        """
        if not self.has_images:
            raise UserError(f"{self.path} holds codes, not images: pass the image shards that they were made from")
        dataset = self.dataset(split)
        pairs = zip(studies.numbers, studies.image_numbers, strict=True)
        return self._pixels_of([(dataset[number], image) for number, image in pairs])

    def _pixels_of(self, images: Sequence[tuple[Sample, int]]) -> np.ndarray:
        assert self._tokenizer is not None  # noqa: S101 - narrows a type
        size, stack = self._tokenizer.image_size, []
        for sample, image in images:
            pixels = sample.images[image]
            if pixels.shape != (size, size):
                raise UserError(
                    f"{self.path} has images of {pixels.shape[0]} x {pixels.shape[1]} pixels, but the model expects "
                    f"{size} x {size}: ingest again with --size {size}"
                )
            stack.append(pixels)
        return np.stack(stack)

    def images(self, split: str, studies: Studies) -> np.ndarray:
        """Return the images as (N, H, W) float32 in [0, 1]; raises as :meth:`pixels`."""
        pixels = self.pixels(split, studies)
        return (pixels / np.iinfo(pixels.dtype).max).astype(np.float32)

    def masks(self, split: str, studies: Studies) -> dict[str, np.ndarray]:
        """Return {finding: (N, H, W) int8} for the findings with a mask in any of the studies.

        1 inside the finding, 0 outside. A study without a mask of the finding is -1 throughout if its labels state
        the finding, else 0.

        Raises:
            UserError: if the shards hold codes.
        """
        if not self.has_images:
            raise UserError(f"{self.path} holds codes, not masks: pass the image shards that they were made from")
        dataset = self.dataset(split)
        found: dict[str, np.ndarray] = {}
        for row, (number, image) in enumerate(zip(studies.numbers, studies.image_numbers, strict=True)):
            for finding, mask in dataset.masks(number, image).items():
                if finding not in found:
                    found[finding] = np.zeros((len(studies), *mask.shape), dtype=np.int8)
                    stated = [labels.get(finding) in (1, -1) for labels in studies.labels]
                    found[finding][stated] = -1
                found[finding][row] = mask
        return found

    def codes(self, split: str, studies: Studies) -> np.ndarray:
        """Return the codes, (N, h, w) int64: read, or computed with the model's tokenizer."""
        if id(studies) not in self._codes:
            # A reference to the studies keeps their id from being reused.
            self._codes[id(studies)] = (studies, self._read_codes(split, studies))
        return self._codes[id(studies)][1]

    def _read_codes(self, split: str, studies: Studies) -> np.ndarray:
        dataset = self.dataset(split)
        pairs = zip(studies.numbers, studies.image_numbers, strict=True)
        return self.codes_of([(dataset[number], image) for number, image in pairs])

    def codes_of(self, images: Sequence[tuple[Sample, int]]) -> np.ndarray:
        """Return the codes, (N, h, w) int64, of images passed as (sample, image number): read, or computed."""
        if self.has_images:
            assert self._tokenizer is not None  # noqa: S101 - narrows a type
            return self._tokenizer.encode_images(list(self._pixels_of(images)))
        codes = []
        for sample, image in images:
            assert sample.codes is not None  # noqa: S101 - narrows a type
            codes.append(sample.codes[image])
        return np.stack(codes).astype(np.int64)

    def describe(self, split: str, evaluated: dict[str, Studies]) -> dict[str, Any]:
        """Return the description of the data for a result file; ``evaluated`` are the studies by task."""
        return {
            "path": self.path,
            "manifest_sha256": hashlib.sha256(canonical_json(self.manifest)).hexdigest(),
            "kind": "images" if self.has_images else "codes",
            "transform": self.manifest.get("transform", {}),
            "source": str(self.manifest.get("source", "unknown")),
            "sections": self.sections,
            "split": split,
            "counts": {
                name: sum(row["samples"] for row in rows.values()) for name, rows in self.manifest["splits"].items()
            },
            "evaluated": {
                task: {"studies": len(studies), "patients": len(set(studies.patients)), "ids": studies.ids}
                for task, studies in evaluated.items()
            },
        }


def with_both_classes(truth: np.ndarray, findings: Sequence[str], least: int = 1) -> list[int]:
    """Return the columns of (N, F) 1 / 0 / NaN labels with at least ``least`` studies of each class.

    Raises:
        UserError: if there is no such column.
    """
    columns = [i for i in range(len(findings)) if min((truth[:, i] == 1).sum(), (truth[:, i] == 0).sum()) >= least]
    if not columns:
        raise UserError(
            f"no finding is both present and absent at least {least} times among {len(truth)} studies: "
            "an AUROC needs both classes. Raise --limit, or use data with labels"
        )
    return columns
