"""What the page answers: plain values in and out, every bound kept here, every mistake a `UserError`."""

import errno
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from medunifier.data.images.synthetic import describe_generated_image, save_synthetic_png
from medunifier.shared.errors import UserError
from medunifier.shared.files.grey_levels import to_uint8
from medunifier.shared.files.input_files import read_bounded
from medunifier.stage2_unified.app.code_grid import Region, edited
from medunifier.stage2_unified.app.reader import FilmReader
from medunifier.stage2_unified.inference.embedding_index import StudyIndex
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.inference.prompts import FINDINGS, chosen_prompts
from medunifier.stage2_unified.inference.report_text import report_of, text_of_labels
from medunifier.stage2_unified.inference.sampled_findings import sampled_probability
from medunifier.stage2_unified.inference.zero_shot import PromptScorer

MOST_CHARACTERS = 5000
MOST_DRAWN = 8
MOST_LABELS = 50
MOST_FOUND = 50
VIEWS = ("as the file says", "PA", "AP", "LATERAL")
MOST_RANKED = 2000
"""Studies of the index that a film's scores are ranked among."""
DRAFTS = 16
"""Reports that are sampled of a film to see how often they state a finding."""
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_REMEMBERED = 64  # films whose codes are kept, so that five questions about one film encode it once


@dataclass(frozen=True)
class ReadFilm:
    """A film as the model sees it: (S, S) pixels in [0, 1], (h, w) codes, ViewPosition."""

    pixels: np.ndarray
    codes: np.ndarray
    view: str


@dataclass(frozen=True)
class Drawn:
    """A drawn radiograph: its file, seed, and the match head's probability that it goes with the text, if any."""

    path: Path
    seed: int
    match: float | None


@dataclass(frozen=True)
class Judged:
    """A finding's scores.

    Attributes:
        name: as it was asked for.
        in_drafts: share of sampled drafts that state it; None for a name that the labeler does not know.
        preference, similarity: see :class:`Scores`.
        above: share of the index's studies with a lower preference; None without an index.
    """

    name: str
    in_drafts: float | None
    preference: float
    similarity: float
    above: float | None


class Answers:
    """The model at work for a page.

    Args:
        pipeline: the model.
        folder: where drawn radiographs are written; the server's own temporary folder.
        index: of studies that may be shown as similar.
        pictures: (S, S) uint8 of the index's studies by their ids, where they may be shown too.
        most_bytes: of an uploaded file.
    """

    def __init__(
        self,
        pipeline: MedUnifierPipeline,
        folder: Path,
        index: StudyIndex | None = None,
        pictures: Mapping[str, np.ndarray] | None = None,
        most_bytes: int = 2**26,
    ) -> None:
        self.pipeline, self.index, self._model = pipeline, index, pipeline.fingerprint
        self.pictures = pictures or {}
        self._folder, self._most_bytes = folder, most_bytes
        self._reader = FilmReader()
        self._films: OrderedDict[str, ReadFilm] = OrderedDict()
        self._scorers: OrderedDict[tuple[str, ...], tuple[PromptScorer, np.ndarray | None]] = OrderedDict()
        self._drafts: OrderedDict[tuple[bytes, str], dict[str, float]] = OrderedDict()

    def read(self, path: str | None, view: str = "") -> ReadFilm:
        """An uploaded file -> pixels and codes; decoded in a process of its own, which may die alone.

        Raises:
            UserError: for no file, one too large, or one that is no radiograph.
        """
        if not path:
            raise UserError("give a radiograph first: a DICOM, PNG or JPEG file")
        file = Path(path)
        try:
            digest = hashlib.sha256(read_bounded(file, self._most_bytes)).hexdigest()
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise UserError(f"the file has more than {self._most_bytes / 2**20:.0f} MiB: give another") from None
            raise UserError("the file is not there any more: give it again") from None
        film = _remembered(self._films, digest, lambda: self._decoded(file))
        return ReadFilm(film.pixels, film.codes, _view(view) or film.view)

    def _decoded(self, file: Path) -> ReadFilm:
        decoded = self._reader.read(file, self.pipeline.tokenizer.image_size)
        return ReadFilm(decoded.pixels, self.pipeline.encode(decoded.pixels[None])[0], decoded.view)

    def report(self, film: ReadFilm) -> Iterator[str]:
        """The draft report as it grows."""
        for sections in self.pipeline.stream_report(film.codes, film.view):
            yield "\n\n".join(f"{name.upper()}: {text}" for name, text in sections.items() if text)

    def findings(self, film: ReadFilm, labels: str = "") -> list[Judged]:
        """Scores of the 13 findings or of any names with commas, in that order.

        Raises:
            UserError: for too many names.
        """
        names = tuple(name.strip() for name in labels.split(",") if name.strip()) or FINDINGS
        if len(names) > MOST_LABELS or len(labels) > MOST_CHARACTERS:
            raise UserError(f"at most {MOST_LABELS} labels are scored at once")
        scorer, others = _remembered(self._scorers, names, lambda: self._scorer(names))
        scores = scorer(self.pipeline.embed_images(film.codes[None], [film.view]))
        preference, similarity = scores.preference[0], scores.similarity[0]
        above = [None] * len(names) if others is None else (others < preference).mean(axis=0).tolist()
        in_drafts = self._stated(film)
        stated = [in_drafts.get(name.lower()) for name in scorer.findings]
        columns = (scorer.findings, stated, preference.tolist(), similarity.tolist(), above)
        return [Judged(*row) for row in zip(*columns, strict=True)]

    def _stated(self, film: ReadFilm) -> dict[str, float]:
        """By the lower-case names of the observations that the labeler knows."""
        key = film.codes.tobytes(), film.view

        def sample() -> dict[str, float]:
            shares = sampled_probability(self.pipeline, film.codes[None], [film.view], DRAFTS)
            return {name: float(share[0]) for name, share in shares.items()}

        return _remembered(self._drafts, key, sample)

    def _scorer(self, names: tuple[str, ...]) -> tuple[PromptScorer, np.ndarray | None]:
        scorer = PromptScorer(self.pipeline, chosen_prompts("sentence", ",".join(names)))
        return scorer, self._preferences_of_index(scorer)

    def _preferences_of_index(self, scorer: PromptScorer) -> np.ndarray | None:
        """(N, F): what the scores of a film, which are not calibrated, can be compared with."""
        if self.index is None:
            return None
        return scorer(self.index.embeddings[:: -(-len(self.index.embeddings) // MOST_RANKED)]).preference

    def similar(self, film: ReadFilm, top: int) -> list[dict[str, object]]:
        """The most similar studies of the index, best first.

        Raises:
            UserError: if the server has no index.
        """
        if self.index is None:
            raise UserError("this server has no index of studies: start it with --index DIR")
        embedded = self.pipeline.embed_images(film.codes[None], [film.view])
        similarity, numbers = self.index.nearest(embedded, _between("top", top, 1, MOST_FOUND))
        return [
            {"rank": rank, "similarity": round(float(value), 4), **self.index.studies[int(number)]}
            for rank, (value, number) in enumerate(zip(similarity[0], numbers[0], strict=True), 1)
        ]

    def match(self, film: ReadFilm, text: str) -> tuple[float, float]:
        """The match head's probability that film and text belong together, and their cosine similarity."""
        report = report_of(_text(text))
        if not any(report.values()):
            raise UserError("type a text first")
        probability = self.pipeline.match(film.codes[None], [film.view], [report])[0]
        image = self.pipeline.embed_images(film.codes[None], [film.view])[0]
        return float(probability), float(image @ self.pipeline.embed_texts([report])[0])

    def draw(
        self, text: str, findings: list[str], count: int, seed: int, guidance: float, view: str, temperature: float
    ) -> tuple[str, list[Drawn]]:
        """Radiographs from a text or, where it is empty, from findings by name; matched back with it.

        Returns:
            The text that was drawn from, and the radiographs.
        """
        text = _text(text).strip() or text_of_labels(findings)
        count = _between("count", count, 1, MOST_DRAWN)
        seed = _between("seed", seed, 0, 2**31)
        if not 0 <= guidance <= 20:
            raise UserError(f"guidance must be from 0 to 20, got {guidance}")
        if not 0 <= temperature <= 2:
            raise UserError(f"temperature must be from 0 to 2, got {temperature}")
        view = _view(view) or "PA"
        reports, views = [report_of(text)] * count, [view] * count
        codes = self.pipeline.draw(reports, views, seed=seed, guidance=guidance, temperature=temperature)
        matches = self.pipeline.match(codes, views, reports).tolist() if text else [None] * count
        self._folder.mkdir(parents=True, exist_ok=True)
        drawn = []
        for number, pixels in enumerate(self.pipeline.decode(codes)):
            about = {"text": text, "view": view, "seed": seed + number, "guidance": guidance}
            about["temperature"] = temperature
            name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
            path = self._folder / f"{name}.png"
            description = describe_generated_image(
                report_of(text), model=self._model, seed=seed + number, guidance=guidance
            )
            save_synthetic_png(path, pixels, description)
            drawn.append(Drawn(path, seed + number, matches[number]))
        return text, drawn

    def edit(self, codes: np.ndarray, region: Region, way: str, code: int) -> np.ndarray:
        """(h, w) codes with a region filled anew."""
        return edited(codes, region, way, code, self.pipeline.tokenizer.codebook_size)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(h, w) codes -> (S, S) uint8."""
        return to_uint8(self.pipeline.decode(codes[None])[0])


def _remembered(known: OrderedDict[K, V], key: K, make: Callable[[], V]) -> V:
    """The value of a key, made if it is not known; the one that was asked for longest ago is forgotten."""
    if key not in known:
        known[key] = make()
        if len(known) > _REMEMBERED:
            known.popitem(last=False)
    known.move_to_end(key)
    return known[key]


def _view(view: str) -> str:
    if view and view not in VIEWS:
        raise UserError(f"unknown view: choose {', '.join(VIEWS)}")
    return "" if view == VIEWS[0] else view


def _text(text: str) -> str:
    if len(text or "") > MOST_CHARACTERS:
        raise UserError(f"the text has {len(text)} characters, at most {MOST_CHARACTERS} are read")
    return text or ""


def _between(name: str, value: float, least: int, most: int) -> int:
    if value != value or not least <= value <= most:
        raise UserError(f"{name} must be from {least} to {most}, got {value}")
    return int(value)
