"""The model operations behind the page. Inputs are validated here; invalid ones raise `UserError`."""

import errno
import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from medunifier.data.images.isolated import IsolatedReader
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.synthetic import describe_generated_image, save_synthetic_png
from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import FINDINGS, NO_FINDING, POSITIVE
from medunifier.data.reports.rules.sentences import split_sentences
from medunifier.data.reports.sections import split_sections
from medunifier.shared.errors import UserError
from medunifier.shared.files.grey_levels import to_uint8
from medunifier.shared.files.input_files import read_bounded
from medunifier.stage2_unified.app.code_grid import Region, edited, marked_codes
from medunifier.stage2_unified.inference.embedding_index import StudyIndex
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.inference.prompts import chosen_prompts
from medunifier.stage2_unified.inference.report_text import report_of, text_of_labels
from medunifier.stage2_unified.inference.sampled_findings import sampled_probability
from medunifier.stage2_unified.inference.zero_shot import PromptScorer
from medunifier.stage2_unified.model.vocabulary import view_name

MAX_CHARACTERS = 5000
MAX_IMAGES = 8
MAX_LABELS = 50
MAX_SECONDS_PER_UPLOAD = 30
"""Time limit for decoding an upload; other requests wait for it."""
MAX_SIMILAR = 50
VIEWS = ("as the file says", "PA", "AP", "LATERAL")
MAX_RANKED = 2000
"""Studies of the index that the scores of an image are ranked against, at most."""
USUAL_IMAGES = 16
"""Radiographs generated once a view, for what is usual at each position of an image."""
SAMPLES = 16
"""Reports sampled per image for the sampled-report probabilities."""
SHORTEST_REPORT = 3
"""Sentences of a text without section headers from which on the match head scores it. The head is trained on whole
reports: of held-out phantoms' own reports it gives the first sentence a median probability below 0.001, the first
four 0.8."""
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_CACHE_SIZE = 64  # cached images, so that several requests about one image encode it once


@dataclass(frozen=True)
class EncodedImage:
    """A radiograph as model input: (S, S) pixels in [0, 1], (h, w) codes, ViewPosition."""

    pixels: np.ndarray
    codes: np.ndarray
    view: str


@dataclass(frozen=True)
class GeneratedImage:
    """A generated radiograph: its file, its seed, and the match head's probability for the prompt, if any."""

    path: Path
    seed: int
    match: float | None


@dataclass(frozen=True)
class FindingScore:
    """Scores of one finding.

    Attributes:
        name: as requested.
        sampled_probability: fraction of sampled reports that state it; None for a name unknown to the labeler, and
            for a finding that the model was not trained on.
        preference, similarity: see :class:`Scores`; None for a finding that the model was not trained on.
        index_rank: fraction of the index's studies with a lower preference; None without an index, and likewise.
    """

    name: str
    sampled_probability: float | None
    preference: float | None
    similarity: float | None
    index_rank: float | None


@dataclass(frozen=True)
class TextMatch:
    """Agreement of an image and a text.

    Attributes:
        probability: of the match head.
        similarity: cosine, -1 to 1.
        percentile: fraction of the index's studies with a lower similarity to the text; None without an index.
        agreement: (finding, whether the text states it, fraction of sampled reports that agree); empty for a whole
            report, and for a text in which the labeler finds nothing. A normal radiograph counts as a finding.
        whole_report: whether the match head applies: to a whole report, or to any text if the model was trained with
            statements.
        untrained: findings of the text that the model was not trained on; they have no score.
        uncertain: findings that the text leaves open; they have no score.
        finding: whether the labeler finds anything in the text.
    """

    probability: float
    similarity: float
    percentile: float | None
    agreement: tuple[tuple[str, bool, float], ...]
    whole_report: bool
    untrained: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    finding: bool = True


def is_whole_report(text: str) -> bool:
    """Return whether a text has section headers or at least :data:`SHORTEST_REPORT` sentences."""
    if split_sections(text).keys() & {"findings", "impression"}:
        return True
    return len(split_sentences(text)) >= SHORTEST_REPORT


def stated_findings(reports: Iterable[str], least: float = 0.02) -> tuple[str, ...]:
    """Return the standard findings that at least a fraction ``least`` of the reports state, in their usual order."""
    labels = [label_report(report) for report in reports]
    stated = Counter(name for found in labels for name, value in found.items() if value == 1)
    return tuple(name for name in FINDINGS if stated[name] >= max(1, least * len(labels)))


class ModelService:
    """Run the model for the page.

    Args:
        pipeline: the model.
        folder: where generated radiographs are written, within the server's temporary folder.
        index: studies to search for similar ones.
        index_images: (S, S) uint8 images of the index's studies by study id, if they may be shown.
        max_bytes: maximum size of an uploaded file.
        learned: findings of the training data, offered if the index's reports state none; () if unknown.

    Attributes:
        learned: findings that the page offers, those of the index if it has reports.
        trained: findings of the training data; the standard 13 if unknown.
    """

    def __init__(
        self,
        pipeline: MedUnifierPipeline,
        folder: Path,
        index: StudyIndex | None = None,
        index_images: Mapping[str, np.ndarray] | None = None,
        max_bytes: int = 2**26,
        learned: tuple[str, ...] = (),
    ) -> None:
        self.pipeline, self.index, self._model = pipeline, index, pipeline.fingerprint
        self.index_images = index_images or {}
        self.learned = self._findings_of_index() or learned or FINDINGS
        self.trained = learned or FINDINGS
        self._folder, self._max_bytes = folder, max_bytes
        self._usual_codes: dict[str, np.ndarray] = {}
        self._reader = IsolatedReader(MAX_SECONDS_PER_UPLOAD)
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()
        self._scorers: OrderedDict[tuple[str, ...], tuple[PromptScorer, np.ndarray | None]] = OrderedDict()
        self._sampled: OrderedDict[tuple[bytes, str], dict[str, float]] = OrderedDict()

    def read(self, path: str | None, view: str = "") -> EncodedImage:
        """Read and encode an uploaded file. It is decoded in a separate process, which may crash alone.

        Raises:
            UserError: if there is no file, it is too large, or it is not a radiograph.
        """
        if not path:
            raise UserError("upload a radiograph first: a DICOM, PNG or JPEG file")
        file = Path(path)
        try:
            digest = hashlib.sha256(read_bounded(file, self._max_bytes)).hexdigest()
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise UserError(
                    f"the file is larger than {self._max_bytes / 2**20:.0f} MiB: upload a smaller one"
                ) from None
            raise UserError("the file was deleted from the server: upload it again") from None
        image = _cached(self._images, digest, lambda: self._decode(file))
        return EncodedImage(image.pixels, image.codes, _view(view) or image.view)

    def _decode(self, file: Path) -> EncodedImage:
        try:
            decoded = self._reader.read(file, self.pipeline.tokenizer.image_size)
        except UnreadableImage as error:
            raise UserError(f"not a readable image: {error.reason}; give DICOM, PNG or JPEG") from None
        return EncodedImage(decoded.pixels, self.pipeline.encode(decoded.pixels[None])[0], decoded.view)

    def is_outside(self, image: EncodedImage) -> bool:
        """Return whether an image lies outside the training data; False if the model folder lacks the reference."""
        reference = self.pipeline.reference
        if reference is None:
            return False
        return bool(reference.outside(self.pipeline.image_nll(image.codes[None], [image.view]))[0])

    def report(self, image: EncodedImage) -> Iterator[str]:
        """Yield the draft report while it is generated."""
        for sections in self.pipeline.stream_report(image.codes, image.view):
            yield "\n\n".join(f"{name.upper()}: {text}" for name, text in sections.items() if text)

    def findings(self, image: EncodedImage, labels: str = "") -> list[FindingScore]:
        """Return scores of the learned findings, or of comma-separated names, in that order.

        Raises:
            UserError: for too many names.
        """
        names = tuple(name.strip() for name in labels.split(",") if name.strip()) or self.learned
        if len(names) > MAX_LABELS or len(labels) > MAX_CHARACTERS:
            raise UserError(f"at most {MAX_LABELS} findings can be scored at once")
        scorer, index_preferences = _cached(self._scorers, names, lambda: self._scorer(names))
        scores = scorer(self.pipeline.embed_images(image.codes[None], [image.view]))
        preference, similarity = scores.preference[0], scores.similarity[0]
        rank = [None] * len(names)
        if index_preferences is not None:
            rank = (index_preferences < preference).mean(axis=0).tolist()
        probabilities = self._sampled_probabilities(image)
        sampled = [probabilities.get(name.lower()) for name in scorer.findings]
        columns = (scorer.findings, sampled, preference.tolist(), similarity.tolist(), rank)
        rows = [FindingScore(*row) for row in zip(*columns, strict=True)]
        return [FindingScore(row.name, *[None] * 4) if self.untrained(row.name) else row for row in rows]

    def untrained(self, name: str) -> tuple[str, ...]:
        """Return the standard findings that a name stands for and that the model was not trained on.

        "pacemaker", as the labeler reads it, stands for Support Devices.
        """
        stated = {finding.lower() for finding in (name, *label_report(text_of_labels([name])))}
        return tuple(finding for finding in FINDINGS if finding.lower() in stated & self._untrained)

    @property
    def _untrained(self) -> set[str]:
        return {name.lower() for name in FINDINGS} - {name.lower() for name in self.trained}

    def _sampled_probabilities(self, image: EncodedImage) -> dict[str, float]:
        """Return the sampled-report probabilities by lower-case observation, without findings not trained on."""
        key = image.codes.tobytes(), image.view

        def sample() -> dict[str, float]:
            fractions = sampled_probability(self.pipeline, image.codes[None], [image.view], SAMPLES)
            return {name: float(fraction[0]) for name, fraction in fractions.items() if name not in self._untrained}

        return _cached(self._sampled, key, sample)

    def _scorer(self, names: tuple[str, ...]) -> tuple[PromptScorer, np.ndarray | None]:
        scorer = PromptScorer(self.pipeline, chosen_prompts("sentence", ",".join(names)))
        return scorer, self._preferences_of_index(scorer)

    def _preferences_of_index(self, scorer: PromptScorer) -> np.ndarray | None:
        """Return (N, F) preferences of the index's studies, a reference for scores that are not calibrated."""
        if self.index is None:
            return None
        return scorer(self.index.embeddings[:: self._stride]).preference

    @property
    def _stride(self) -> int:
        """Step through the index that leaves at most :data:`MAX_RANKED` studies."""
        return 1 if self.index is None else max(1, -(-len(self.index.embeddings) // MAX_RANKED))

    def _findings_of_index(self) -> tuple[str, ...]:
        if self.index is None:
            return ()
        return stated_findings(
            "\n".join(str(study.get(name) or "") for name in ("findings", "impression"))
            for study in self.index.studies[:: self._stride]
        )

    def similar(self, image: EncodedImage, top: int) -> list[dict[str, object]]:
        """Return the most similar studies of the index, best first.

        Raises:
            UserError: if the server has no index.
        """
        if self.index is None:
            raise UserError("this server has no index of studies: start it with --index DIR")
        embedded = self.pipeline.embed_images(image.codes[None], [image.view])
        similarity, numbers = self.index.nearest(embedded, _between("top", top, 1, MAX_SIMILAR))
        return [
            {"rank": rank, "similarity": round(float(value), 4), **self.index.studies[int(number)]}
            for rank, (value, number) in enumerate(zip(similarity[0], numbers[0], strict=True), 1)
        ]

    def match(self, image: EncodedImage, text: str) -> TextMatch:
        """Return how far an image and a text agree.

        Raises:
            UserError: if the text is empty or too long.
        """
        report = report_of(_text(text))
        if not any(report.values()):
            raise UserError("enter a text first")
        probability = self.pipeline.match(image.codes[None], [image.view], [report])[0]
        embedding = self.pipeline.embed_images(image.codes[None], [image.view])[0]
        embedded = self.pipeline.embed_texts([report])[0]
        similarity = float(embedding @ embedded)
        percentile = None
        if self.index is not None:
            percentile = float((self.index.embeddings[:: self._stride] @ embedded < similarity).mean())
        whole = self._matches(text)
        found = label_report(text)
        untrained = self._not_learned(found)
        uncertain = tuple(name for name, value in found.items() if value < 0 and name not in untrained)
        known = {
            name: value == POSITIVE
            for name, value in found.items()
            if name not in untrained + uncertain and (name != NO_FINDING or len(found) == 1)
        }
        agreement = () if whole else tuple(self._agreement(image, known))
        return TextMatch(
            float(probability), similarity, percentile, agreement, whole, untrained, uncertain, bool(found)
        )

    def states_findings(self, text: str) -> bool:
        """Return whether the labeler finds anything in a text."""
        return bool(label_report(text))

    def not_learned(self, text: str) -> tuple[str, ...]:
        """Return the findings of a text, stated, denied or doubted, that the model was not trained on."""
        return self._not_learned(label_report(text))

    def _not_learned(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name.lower() in self._untrained)

    def _matches(self, text: str) -> bool:
        """Return whether the match head was trained on such texts."""
        return self.pipeline.statements or is_whole_report(text)

    def _usual(self, view: str) -> np.ndarray:
        """Return (M, h, w) codes of radiographs generated without a text, made once a view."""
        name = view_name(view)
        if name not in self._usual_codes:
            reports = [{"findings": "", "impression": ""}] * USUAL_IMAGES
            self._usual_codes[name] = self.pipeline.draw(reports, [view] * USUAL_IMAGES, guidance=0.0)
        return self._usual_codes[name]

    def similarity_map(self, image: EncodedImage, text: str) -> np.ndarray:
        """Return (S, S, 3) uint8, the image with the codes that agree with a text marked in red.

        Raises:
            UserError: if the text is empty or too long.
        """
        report = report_of(_text(text))
        if not any(report.values()):
            raise UserError("enter a text first")
        normal = {self.pipeline.processor.codec.sections[0]: "The radiograph is normal."}
        (values,) = self.pipeline.similarity_maps(
            image.codes[None], [image.view], report, normal, self._usual(image.view)
        )
        return marked_codes(image.pixels, values)

    def _agreement(self, image: EncodedImage, labels: Mapping[str, bool]) -> Iterator[tuple[str, bool, float]]:
        probabilities = self._sampled_probabilities(image) if labels else {}
        for name, stated in labels.items():
            probability = probabilities[name.lower()]
            yield name, stated, probability if stated else 1 - probability

    def draw(
        self, text: str, findings: list[str], count: int, seed: int, guidance: float, view: str, temperature: float
    ) -> tuple[str, list[GeneratedImage]]:
        """Generate radiographs from a text or, if it is empty, from findings by name, and match them with the prompt.

        A prompt shorter than a report is matched only by a model trained with statements (:func:`is_whole_report`).

        Returns:
            The prompt and the radiographs.
        """
        text = _text(text).strip() or text_of_labels(findings)
        count = _between("count", count, 1, MAX_IMAGES)
        seed = _between("seed", seed, 0, 2**31)
        if not 0 <= guidance <= 20:
            raise UserError(f"guidance must be from 0 to 20, got {guidance}")
        if not 0 <= temperature <= 2:
            raise UserError(f"temperature must be from 0 to 2, got {temperature}")
        view = _view(view) or "PA"
        reports, views = [report_of(text)] * count, [view] * count
        codes = self.pipeline.draw(reports, views, seed=seed, guidance=guidance, temperature=temperature)
        matches = self.pipeline.match(codes, views, reports).tolist() if self._matches(text) else [None] * count
        self._folder.mkdir(parents=True, exist_ok=True)
        generated = []
        for number, pixels in enumerate(self.pipeline.decode(codes)):
            settings = {"text": text, "view": view, "seed": seed + number, "guidance": guidance}
            settings["temperature"] = temperature
            name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
            path = self._folder / f"{name}.png"
            description = describe_generated_image(
                report_of(text), model=self._model, seed=seed + number, guidance=guidance
            )
            save_synthetic_png(path, pixels, description)
            generated.append(GeneratedImage(path, seed + number, matches[number]))
        return text, generated

    def edit(self, codes: np.ndarray, region: Region, way: str, code: int) -> np.ndarray:
        """Return (h, w) codes with a region replaced."""
        return edited(codes, region, way, code, self.pipeline.tokenizer.codebook_size)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode (h, w) codes to (S, S) uint8."""
        return to_uint8(self.pipeline.decode(codes[None])[0])


def _cached(cache: OrderedDict[K, V], key: K, compute: Callable[[], V]) -> V:
    """Return the value of a key, computed on a miss; the least recently used entry is evicted."""
    if key not in cache:
        cache[key] = compute()
        if len(cache) > _CACHE_SIZE:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def _view(view: str) -> str:
    if view and view not in VIEWS:
        raise UserError(f"unknown view: choose {', '.join(VIEWS)}")
    return "" if view == VIEWS[0] else view


def _text(text: str) -> str:
    if len(text or "") > MAX_CHARACTERS:
        raise UserError(f"the text has {len(text)} characters, at most {MAX_CHARACTERS} are allowed")
    return text or ""


def _between(name: str, value: float, least: int, most: int) -> int:
    if value != value or not least <= value <= most:
        raise UserError(f"{name} must be from {least} to {most}, got {value}")
    return int(value)
