"""The studies that a task is judged on: a published draw of one split, one image a study."""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from medunifier.data.shards.dataset import Sample, ShardDataset, read_manifest
from medunifier.shared.artifacts import canonical_json
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.processing.report_codec import normalise_report, sections_of
from medunifier.stage2_unified.model.processing.view_selection import choose_view
from medunifier.stage2_unified.model.vocabulary import view_name


class ImageTokenizer(Protocol):
    """What is asked here of the frozen tokenizer (`medunifier.stage1_tokenizer.frozen.FrozenTokenizer`)."""

    fingerprint: str

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""

    def encode_images(self, images: Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """(H, W) uint8 or uint16 arrays -> (N, h, w) int64 codes."""


@dataclass(frozen=True)
class Studies:
    """N studies, one image each, in the order of the shards.

    Attributes:
        ids, patients: pseudonyms.
        views: ViewPosition of the image.
        reports: ``{"findings", "impression"}``, the sections that the data was ingested with; others are "".
        labels: ``{finding: 1 | 0 | -1}``.
        numbers: (N,) of the sample in its split.
        image_numbers: which image of the study it is.
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
        """Each report as one line."""
        return [report_line(report) for report in self.reports]

    @cached_property
    def text_ids(self) -> np.ndarray:
        """(N,) integers, equal where the normalised reports are equal: the model's own rule in training."""
        return np.unique([normalise_report(text) for text in self.texts], return_inverse=True)[1]

    @cached_property
    def labels_digest(self) -> str:
        """SHA-256 over ids and labels: two results with the same one judged the same truth."""
        rows = [[name, dict(sorted(labels.items()))] for name, labels in zip(self.ids, self.labels, strict=True)]
        return hashlib.sha256(canonical_json(rows)).hexdigest()


def report_line(report: dict[str, str]) -> str:
    """Findings, then impression, on one line."""
    return " ".join(text for text in (report["findings"], report["impression"]) if text)


class EvaluationData:
    """A shard folder, of images or of codes, as the tasks read it. What is read once is kept.

    Args:
        path: shard folder with a manifest.
        tokenizer: of the model under judgement; its codes are computed where the shards hold images. None
            where neither images nor codes are read.
        seed: of every draw of studies.
        sections: which sections make the reports; those of the manifest if not given.
        ids: judge these studies alone, in every split but ``train``; all of them must be there.

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
        own = str(self.manifest.get("transform", {}).get("text", "findings+impression"))
        self.sections = own if sections is None else "+".join(sections_of(sections))
        self._ids = None if ids is None else set(ids)
        self.has_images = "tokenizer" not in self.manifest
        self._datasets: dict[str, ShardDataset] = {}
        self._drawn: dict[tuple[str, int, bool], Studies] = {}
        self._codes: dict[int, tuple[Studies, np.ndarray]] = {}
        found = self.manifest.get("tokenizer", {}).get("fingerprint")
        if not self.has_images and tokenizer is not None and found != tokenizer.fingerprint:
            raise UserError(
                f"the codes in {path} were made by tokenizer {str(found)[:12]}, the model reads those of "
                f"{tokenizer.fingerprint[:12]}: run `medunifier tokenize` with the latter, or give image shards"
            )

    def has_split(self, split: str) -> bool:
        """Whether the split has samples."""
        return any(row["samples"] for row in self.manifest["splits"].get(split, {}).values())

    def dataset(self, split: str) -> ShardDataset:
        """The samples of a split."""
        if split not in self._datasets:
            self._datasets[split] = ShardDataset(self.path, split)
        return self._datasets[split]

    def studies(self, split: str, limit: int = 0, *, with_text: bool = True) -> Studies:
        """A draw of ``limit`` studies (0 = all) without replacement, a pure function of data and seed.

        Studies without a frontal image (or one of unknown position) are left out; with ``with_text`` those
        without a report are, too.

        Raises:
            UserError: if none is left.
        """
        key = (split, limit, with_text)
        if key not in self._drawn:
            self._drawn[key] = self._draw(*key)
        return self._drawn[key]

    def _draw(self, split: str, limit: int, with_text: bool) -> Studies:
        dataset = self.dataset(split)
        order = np.random.default_rng(self._seed).permutation(len(dataset))
        only = None if split == "train" else self._ids
        if only is not None:
            self._all_there(only, split)
        chosen: list[tuple[int, dict[str, Any], int]] = []
        for number in order:
            info = dataset.info(int(number))
            if only is not None and info["study_id"] not in only:
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
                "this task cannot be judged on it"
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

    def _all_there(self, ids: set[str], split: str) -> None:
        absent = ids - {info["study_id"] for info in self.dataset(split).infos()}
        if absent:
            raise UserError(
                f"{len(absent)} of the {len(ids)} ids are not in split {split!r} of {self.path}, such as "
                f"{min(absent)}: they were drawn from other data, or with another pseudonym key"
            )

    def _report(self, info: dict[str, Any]) -> dict[str, str]:
        """The sections in use that are not empty."""
        report = info["report"]
        return {name: report[name] for name in self.sections.split("+") if report.get(name, "").strip()}

    def all_labels_and_texts(self, split: str) -> tuple[list[dict[str, int]], str]:
        """Labels of every study of a split that has text, and its most frequent report: what needs no model."""
        reports: Counter[str] = Counter()
        spelled: dict[str, str] = {}
        labels = []
        for info in self.dataset(split).infos():
            if report := self._report(info):
                text = " ".join(report.values())
                key = normalise_report(text)
                reports[key] += 1
                spelled.setdefault(key, text)
                labels.append(info["labels"])
        if not labels:
            return [], ""
        return labels, spelled[max(reports, key=lambda key: (reports[key], key))]

    def pixels(self, split: str, studies: Studies) -> np.ndarray:
        """(N, H, W) uint8 or uint16, as stored.

        Raises:
            UserError: if the shards hold codes, or images of another size than the model's.
        """
        if not self.has_images:
            raise UserError(f"{self.path} holds codes, not images: give the image shards that they were made from")
        dataset = self.dataset(split)
        pairs = zip(studies.numbers, studies.image_numbers, strict=True)
        return self._pixels_of([(dataset[number], image) for number, image in pairs])

    def _pixels_of(self, images: Sequence[tuple[Sample, int]]) -> np.ndarray:
        assert self._tokenizer is not None
        size, stack = self._tokenizer.image_size, []
        for sample, image in images:
            pixels = sample.images[image]
            if pixels.shape != (size, size):
                raise UserError(
                    f"{self.path} has images of {pixels.shape[0]} x {pixels.shape[1]} pixels, the model was made for "
                    f"{size} x {size}: ingest again with --size {size}"
                )
            stack.append(pixels)
        return np.stack(stack)

    def images(self, split: str, studies: Studies) -> np.ndarray:
        """(N, H, W) float32 in [0, 1]; raises as :meth:`pixels`."""
        pixels = self.pixels(split, studies)
        return (pixels / np.iinfo(pixels.dtype).max).astype(np.float32)

    def masks(self, split: str, studies: Studies) -> dict[str, np.ndarray]:
        """{finding: (N, H, W) int8} of the findings that have a mask in any of the studies.

        1 where the finding lies, 0 elsewhere, -1 throughout a study that has it and no mask that tells where. A study
        without a mask of a finding that its labels do not state has an empty one.

        Raises:
            UserError: if the shards hold codes.
        """
        if not self.has_images:
            raise UserError(f"{self.path} holds codes, not masks: give the image shards that they were made from")
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
        """(N, h, w) int64: read, or computed with the model's tokenizer."""
        if id(studies) not in self._codes:
            # The studies are kept beside their codes, so that the id stays theirs.
            self._codes[id(studies)] = (studies, self._read_codes(split, studies))
        return self._codes[id(studies)][1]

    def _read_codes(self, split: str, studies: Studies) -> np.ndarray:
        dataset = self.dataset(split)
        pairs = zip(studies.numbers, studies.image_numbers, strict=True)
        return self.codes_of([(dataset[number], image) for number, image in pairs])

    def codes_of(self, images: Sequence[tuple[Sample, int]]) -> np.ndarray:
        """(N, h, w) int64 of any images, each a sample and the image's number: read, or computed."""
        if self.has_images:
            assert self._tokenizer is not None
            return self._tokenizer.encode_images(list(self._pixels_of(images)))
        rows = []
        for sample, image in images:
            assert sample.codes is not None
            rows.append(sample.codes[image])
        return np.stack(rows).astype(np.int64)

    def describe(self, split: str, judged: dict[str, Studies]) -> dict[str, Any]:
        """What a result file says of its data; ``judged`` are the draws by task."""
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
            "judged": {
                task: {"studies": len(studies), "patients": len(set(studies.patients)), "ids": studies.ids}
                for task, studies in judged.items()
            },
        }


def with_both_classes(truth: np.ndarray, findings: Sequence[str], least: int = 1) -> list[int]:
    """Columns of (N, F) 1 / 0 / NaN labels that have at least ``least`` rows of each class.

    Raises:
        UserError: if no finding has both.
    """
    columns = [i for i in range(len(findings)) if min((truth[:, i] == 1).sum(), (truth[:, i] == 0).sum()) >= least]
    if not columns:
        raise UserError(
            f"no finding is both present and absent at least {least} times among {len(truth)} studies: "
            "an AUROC needs both classes; raise --limit, or choose data with labels"
        )
    return columns
