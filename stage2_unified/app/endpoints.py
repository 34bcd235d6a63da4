"""Handlers of the page's events and its HTTP API, with values that Gradio can display."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from medunifier.shared.errors import UserError
from medunifier.shared.files.grey_levels import to_uint8
from medunifier.stage2_unified.app.code_grid import Region, cell_pixels, render_codes
from medunifier.stage2_unified.app.phantoms import Example
from medunifier.stage2_unified.app.service import SAMPLES, ModelService

SCORE_COLUMNS = ("finding", "sampled probability", "statement over denial", "similarity", "rank in the index")
SIMILAR_COLUMNS = ("rank", "similarity", "study", "view", "findings", "impression")
MATCH_COLUMNS = ("seed", "match")
NO_RISK = "not the risk of a disease"

Rows = list[list[Any]]


class Endpoints:
    """One method per endpoint of the same name. Methods after :meth:`edit` are used only by the page.

    Args:
        service: runs the model.
        examples: example radiographs.
    """

    def __init__(self, service: ModelService, examples: Sequence[Example]) -> None:
        self._service, self._examples = service, examples
        tokenizer = service.pipeline.tokenizer
        self._grid, self._codebook_size = tokenizer.grid, tokenizer.codebook_size

    def show(self, path: str | None, view: str) -> np.ndarray:
        """Return the (S, S) uint8 model input of an image."""
        return to_uint8(self._service.read(path, view).pixels)

    def report(self, path: str | None, view: str) -> Iterator[str]:
        """Yield the draft report of an image after each token."""
        yield from self._service.report(self._service.read(path, view))

    def findings(self, path: str | None, view: str, labels: str) -> Rows:
        """Return :data:`SCORE_COLUMNS` of the standard findings or of comma-separated names, highest first."""
        scores = self._service.findings(self._service.read(path, view), labels or "")
        rows: Rows = [
            [s.name, s.sampled_probability, round(s.preference, 3), round(s.similarity, 3), s.index_rank]
            for s in scores
        ]
        return sorted(rows, key=lambda row: (-1 if row[1] is None else row[1], row[4] or 0, row[2]), reverse=True)

    def similar(self, path: str | None, view: str, top: float) -> Rows:
        """Return :data:`SIMILAR_COLUMNS` of the most similar studies, best first."""
        rows = self._service.similar(self._service.read(path, view), int(top))
        for row in rows:
            row["study"] = row.get("study_id") or Path(str(row.get("path", ""))).name
        return [[row.get(name, "") for name in SIMILAR_COLUMNS] for row in rows]

    def match(self, path: str | None, view: str, text: str) -> tuple[float, float]:
        """Return the probability that image and text match, and their cosine similarity."""
        probability, similarity = self._service.match(self._service.read(path, view), text)
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
        """Generate from a text or findings; return the prompt, files with captions, and :data:`MATCH_COLUMNS`."""
        numbers = int(count), int(seed), float(guidance)
        prompt, images = self._service.draw(text, names or [], *numbers, view, float(temperature))
        gallery = []
        for image in images:
            match = "" if image.match is None else f", match {image.match:.2f}"
            gallery.append((str(image.path), f"synthetic, seed {image.seed}{match}"))
        return prompt, gallery, [[image.seed, round(image.match, 4)] for image in images if image.match is not None]

    def tokens(self, path: str | None, view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the codes of an image, rendered and decoded."""
        image = self._service.read(path, view)
        return image.codes, render_codes(image.codes, self._codebook_size), self._service.decode(image.codes)

    def edit(
        self, codes: np.ndarray | None, top: float, left: float, height: float, width: float, way: str, code: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the codes with a region replaced, rendered and decoded."""
        if codes is None:
            raise UserError("show the codes of a radiograph first")
        region = Region(int(top), int(left), int(height), int(width))
        changed = self._service.edit(codes, region, way, int(code))
        return changed, render_codes(changed, self._codebook_size, region), self._service.decode(changed)

    def choose(self, event: gr.SelectData) -> tuple[str, str, Any]:
        """Return file, view and ground truth of the example that was clicked."""
        example = self._examples[event.index]
        truth = f"**Ground-truth report of this phantom**\n\n{example.truth}"
        return str(example.path), example.view, gr.update(value=truth, visible=True)

    def pick(
        self, event: gr.SelectData, codes: np.ndarray | None, height: float, width: float
    ) -> tuple[int, int, np.ndarray | None]:
        """Return row and column of the clicked code, and the rendered codes with the region starting there."""
        column, row = event.index
        cell, (rows, columns) = cell_pixels(self._grid), self._grid
        top, left = min(row // cell, rows - 1), min(column // cell, columns - 1)
        if codes is None:
            return top, left, None
        region = Region(top, left, min(max(int(height), 1), rows - top), min(max(int(width), 1), columns - left))
        return top, left, render_codes(codes, self._codebook_size, region)

    def bars(self, rows: Rows) -> gr.Label:
        """Return the bar chart for the rows of :meth:`findings`: the sampled-report probabilities.

        If the labeler knows none of the names: the rank in the index, or without an index the softmax.
        """
        sampled = {name: probability for name, probability, *_ in rows if probability is not None}
        if sampled:
            return gr.Label(sampled, label=f"Findings: fraction of {SAMPLES} sampled reports; {NO_RISK}")
        if all(rank is not None for *_, rank in rows):
            ranks = {name: rank for name, *_, rank in rows}
            return gr.Label(ranks, label=f"Findings: rank in the index (100 % = highest); {NO_RISK}")
        preferences = {name: preference for name, _, preference, *_ in rows}
        return gr.Label(preferences, label=f"Findings: statement over denial, not calibrated; {NO_RISK}")

    def thumbnails(self, rows: Rows) -> list[tuple[np.ndarray, str]]:
        """Return the images for the rows of :meth:`similar`, of studies that have one."""
        images = self._service.index_images
        return [(images[study], f"similarity {cosine:.2f}") for _, cosine, study, *_ in rows if study in images]
