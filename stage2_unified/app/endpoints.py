"""What the page's buttons and its HTTP API call: answers as values that Gradio shows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from medunifier.shared.errors import UserError
from medunifier.shared.files.grey_levels import to_uint8
from medunifier.stage2_unified.app.answers import DRAFTS, Answers
from medunifier.stage2_unified.app.code_grid import Region, cell_pixels, picture_of
from medunifier.stage2_unified.app.phantoms import Example

SCORES = ("finding", "in drafts", "statement over denial", "similarity", "rank in the index")
FOUND = ("rank", "similarity", "study", "view", "findings", "impression")
DRAWN = ("seed", "match")
NO_RISK = "no risk of a disease"

Rows = list[list[Any]]


class Endpoints:
    """A method an endpoint, by its name. Those after :meth:`edit` serve the page alone.

    Args:
        answers: the model at work.
        examples: radiographs to try.
    """

    def __init__(self, answers: Answers, examples: Sequence[Example]) -> None:
        self._answers, self._examples = answers, examples
        self._grid, self._codes = answers.pipeline.tokenizer.grid, answers.pipeline.tokenizer.codebook_size

    def show(self, path: str | None, view: str) -> np.ndarray:
        """A film -> (S, S) uint8, as the model sees it."""
        return to_uint8(self._answers.read(path, view).pixels)

    def report(self, path: str | None, view: str) -> Iterator[str]:
        """A film -> its draft report, anew with every word."""
        yield from self._answers.report(self._answers.read(path, view))

    def findings(self, path: str | None, view: str, labels: str) -> Rows:
        """A film -> :data:`SCORES` of the usual findings or of names with commas, highest first."""
        judged = self._answers.findings(self._answers.read(path, view), labels or "")
        rows: Rows = [
            [one.name, one.in_drafts, round(one.preference, 3), round(one.similarity, 3), one.above] for one in judged
        ]
        return sorted(rows, key=lambda row: (-1 if row[1] is None else row[1], row[4] or 0, row[2]), reverse=True)

    def similar(self, path: str | None, view: str, top: float) -> Rows:
        """A film -> :data:`FOUND` of the most similar studies, best first."""
        rows = self._answers.similar(self._answers.read(path, view), int(top))
        for row in rows:
            row["study"] = row.get("study_id") or Path(str(row.get("path", ""))).name
        return [[row.get(name, "") for name in FOUND] for row in rows]

    def match(self, path: str | None, view: str, text: str) -> tuple[float, float]:
        """A film and a text -> probability that they belong together, cosine similarity."""
        probability, similarity = self._answers.match(self._answers.read(path, view), text)
        return round(probability, 4), round(similarity, 4)

    def draw(
        self,
        text: str,
        names: list[str],
        count: float,
        seed: float,
        guidance: float,
        view: str,
        temperature: float,
    ) -> tuple[str, list[tuple[str, str]], Rows]:
        """A text or findings -> what was drawn from, files with captions, :data:`DRAWN`."""
        numbers = int(count), int(seed), float(guidance)
        drawn_from, drawn = self._answers.draw(text, names or [], *numbers, view, float(temperature))
        gallery = []
        for one in drawn:
            matched = "" if one.match is None else f", match {one.match:.2f}"
            gallery.append((str(one.path), f"synthetic, seed {one.seed}{matched}"))
        return drawn_from, gallery, [[one.seed, round(one.match, 4)] for one in drawn if one.match is not None]

    def tokens(self, path: str | None, view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A film -> its codes, a picture of them, and what they decode to."""
        film = self._answers.read(path, view)
        return film.codes, picture_of(film.codes, self._codes), self._answers.decode(film.codes)

    def edit(
        self, codes: np.ndarray | None, top: float, left: float, height: float, width: float, way: str, code: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes with a region filled anew, a picture of them, and what they decode to."""
        if codes is None:
            raise UserError("show the codes of a radiograph first")
        region = Region(int(top), int(left), int(height), int(width))
        changed = self._answers.edit(codes, region, way, int(code))
        return changed, picture_of(changed, self._codes, region), self._answers.decode(changed)

    def choose(self, event: gr.SelectData) -> tuple[str, str, Any]:
        """A click on an example -> its file, its view, and the truth about it, shown."""
        example = self._examples[event.index]
        truth = f"**What this phantom shows**, by its own report:\n\n{example.truth}"
        return str(example.path), example.view, gr.update(value=truth, visible=True)

    def pick(
        self, event: gr.SelectData, codes: np.ndarray | None, height: float, width: float
    ) -> tuple[int, int, np.ndarray | None]:
        """A click on the codes -> row, column, and the picture with the region that now begins there."""
        column, row = event.index
        cell, (rows, columns) = cell_pixels(self._grid), self._grid
        top, left = min(row // cell, rows - 1), min(column // cell, columns - 1)
        if codes is None:
            return top, left, None
        region = Region(top, left, min(max(int(height), 1), rows - top), min(max(int(width), 1), columns - left))
        return top, left, picture_of(codes, self._codes, region)

    def bars(self, rows: Rows) -> gr.Label:
        """The rows of :meth:`findings` -> a bar a finding: how many drafts state it.

        Where the labeler knows none of the names: its rank in the index, or else the statement's share.
        """
        stated = {name: share for name, share, *_ in rows if share is not None}
        if stated:
            return gr.Label(stated, label=f"Findings: share of {DRAFTS} sampled drafts that state them; {NO_RISK}")
        if all(above is not None for *_, above in rows):
            ranks = {name: above for name, *_, above in rows}
            return gr.Label(ranks, label=f"Findings, as ranked in the index (100 % = highest); {NO_RISK}")
        shares = {name: preference for name, _, preference, *_ in rows}
        return gr.Label(shares, label=f"Findings: a sentence's share against its denial, not calibrated; {NO_RISK}")

    def pictures(self, rows: Rows) -> list[tuple[np.ndarray, str]]:
        """The rows of :meth:`similar` -> pictures of those studies that have one."""
        known = self._answers.pictures
        return [(known[study], f"similarity {cosine:.2f}") for _, cosine, study, *_ in rows if study in known]
