"""Handlers of the page's events and its HTTP API, with values that Gradio can display."""

import functools
import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from medunifier.data.reports.observations import NO_FINDING
from medunifier.shared.errors import UserError
from medunifier.shared.files.grey_levels import to_uint8
from medunifier.stage2_unified.app.code_grid import WAYS, Region, cell_pixels, render_codes
from medunifier.stage2_unified.app.phantoms import Example
from medunifier.stage2_unified.app.service import SAMPLES, ModelService, TextMatch

SCORE_COLUMNS = ("finding", "sampled probability", "statement over denial", "similarity", "percentile in the index")
SIMILAR_COLUMNS = ("rank", "similarity", "study", "view", "findings", "impression")
PROMPT_COLUMNS = ("finding", "statement over denial", "similarity", "percentile in the index")
MATCH_COLUMNS = ("seed", "match")
NO_RISK = "not the risk of a disease"
ERROR = "**Error:**"
"""Start of an error message of the page."""
OUTSIDE = "**This image is unlike the data that the model was trained on: its results are unreliable.**"
STEPS = ("Reading the image", "Writing the report", "Scoring the findings", "Searching similar studies")
_UNKNOWN_PROMPT = "No known finding in this text: what the radiographs show has nothing to do with it."
_NOTHING_KNOWN = "No known finding in this text. Enter a whole report, or a sentence about a finding."

Rows = list[list[Any]]


def in_words(
    handler: Callable[..., Iterator[tuple[Any, ...]]], emptied: Sequence[Any]
) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Return a handler of the page whose first output is a message: after a `UserError` what was wrong.

    Raised, it would be shown for some seconds only, beside a badge without words and the results of the request
    before. The attribute ``refused`` returns the same for an error found before the handler runs.

    Args:
        handler: yields the message and the results.
        emptied: results after an error.
    """

    def refused(error: UserError) -> tuple[Any, ...]:
        return f"{ERROR} {error}", *emptied

    @functools.wraps(handler)
    def handled(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from handler(*arguments)
        except UserError as error:
            yield refused(error)

    vars(handled)["refused"] = refused
    return handled


class Endpoints:
    """One method per endpoint of the same name. Methods after :meth:`edit` are used only by the page.

    Those that run the model for the page yield a message for it and the results: first the progress, with the results
    of the request before removed.

    Args:
        service: runs the model.
        examples: example radiographs.
    """

    def __init__(self, service: ModelService, examples: Sequence[Example]) -> None:
        self._service, self._examples = service, examples
        tokenizer = service.pipeline.tokenizer
        self._grid, self._codebook_size = tokenizer.grid, tokenizer.codebook_size
        self._running: dict[str | None, Iterator[tuple[Any, ...]]] = {}  # by session

    def show(self, path: str | None, view: str) -> np.ndarray:
        """Return the (S, S) uint8 model input of an image."""
        return to_uint8(self._service.read(path, view).pixels)

    def report(self, path: str | None, view: str) -> Iterator[str]:
        """Yield the draft report of an image after each token."""
        yield from self._service.report(self._service.read(path, view))

    def findings(self, path: str | None, view: str, labels: str) -> Rows:
        """Return :data:`SCORE_COLUMNS` of the learned findings or of comma-separated names, highest first."""
        scores = self._service.findings(self._service.read(path, view), labels or "")
        rows: Rows = [
            [s.name, s.sampled_probability, s.preference, s.similarity and round(s.similarity, 3), s.index_rank]
            for s in scores
        ]
        return sorted(
            rows, key=lambda row: (-1 if row[1] is None else row[1], row[4] or 0, row[2] or 0), reverse=True
        )

    def similar(self, path: str | None, view: str, top: float) -> Rows:
        """Return :data:`SIMILAR_COLUMNS` of the most similar studies, best first."""
        rows = self._service.similar(self._service.read(path, view), int(top))
        for row in rows:
            row["study"] = row.get("study_id") or Path(str(row.get("path", ""))).name
        return [[row.get(name, "") for name in SIMILAR_COLUMNS] for row in rows]

    def match(self, path: str | None, view: str, text: str) -> tuple[float, float, str, str]:
        """Return the match head's probability, the cosine similarity, the answer for the page, and weaker scores."""
        found = self._service.match(self._service.read(path, view), text)
        return found.probability, round(found.similarity, 4), *match_texts(found)

    def similarity_map(self, path: str | None, view: str, text: str) -> np.ndarray:
        """Return the (S, S, 3) uint8 image with the codes that agree with the text marked in red."""
        return self._service.similarity_map(self._service.read(path, view), text)

    def draw(
        self,
        text: str,
        names: list[str],
        count: float,
        seed: float | None,
        guidance: float,
        view: str,
        temperature: float,
    ) -> tuple[str, list[tuple[str, str]], dict[str, Any]]:
        """Generate from a text or findings; return the prompt, files with captions, and :data:`MATCH_COLUMNS`."""
        numbers = int(count), int(entered(seed, "a seed")), float(guidance)
        prompt, images = self._service.draw(text, names or [], *numbers, view, float(temperature))
        gallery = []
        for image in images:
            match = "" if image.match is None else f", match {small(image.match)}"
            gallery.append((str(image.path), f"synthetic, seed {image.seed}{match}"))
        matched = [[image.seed, image.match] for image in images if image.match is not None]
        return prompt, gallery, table(MATCH_COLUMNS, matched)

    def tokens(self, path: str | None, view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the codes of an image, rendered and decoded."""
        image = self._service.read(path, view)
        return image.codes, render_codes(image.codes, self._codebook_size), self._service.decode(image.codes)

    def edit(
        self,
        codes: np.ndarray | None,
        top: float | None,
        left: float | None,
        height: float | None,
        width: float | None,
        way: str,
        code: float | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the codes with a region replaced, rendered and decoded."""
        if codes is None:
            raise UserError("show the codes of a radiograph first")
        names = ("a first row", "a first column", "a number of rows", "a number of columns")
        region = Region(
            *(int(entered(one, name)) for one, name in zip((top, left, height, width), names, strict=True))
        )
        if way == WAYS[0]:
            code = entered(code, f"a code from 0 to {self._codebook_size - 1}")
        changed = self._service.edit(codes, region, way, int(code or 0))
        return changed, render_codes(changed, self._codebook_size, region), self._service.decode(changed)

    def choose(self, event: gr.SelectData) -> tuple[str, str, Any]:
        """Return file, view and ground truth of the example that was clicked."""
        if type(event.index) is not int or not 0 <= event.index < len(self._examples):
            raise UserError("there is no such example")
        example = self._examples[event.index]
        truth = f"**Ground-truth report of this phantom**\n\n{example.truth}"
        return str(example.path), example.view, gr.update(value=truth, visible=True)

    def pick(
        self, event: gr.SelectData, codes: np.ndarray | None, height: float | None, width: float | None
    ) -> tuple[int, int, np.ndarray | None]:
        """Return row and column of the clicked code, and the rendered codes with the region starting there."""
        if not isinstance(event.index, list):
            raise UserError("click a code")
        column, row = event.index
        cell, (rows, columns) = cell_pixels(self._grid), self._grid
        top, left = min(row // cell, rows - 1), min(column // cell, columns - 1)
        if codes is None:
            return top, left, None
        region = Region(
            top, left, min(max(int(height or 1), 1), rows - top), min(max(int(width or 1), 1), columns - left)
        )
        return top, left, render_codes(codes, self._codebook_size, region)

    def leave(self, request: gr.Request) -> None:
        """End the run about the image of a client that passes to another image, or to none."""
        self._running.pop(request.session_hash, None)

    def _while_shown(self, request: gr.Request, steps: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield ``steps`` until :meth:`leave`: later results would be taken for those of the next image."""
        self._running[request.session_hash] = steps
        try:
            for outputs in steps:
                if self._running.get(request.session_hash) is not steps:
                    return
                yield outputs
        finally:
            if self._running.get(request.session_hash) is steps:
                del self._running[request.session_hash]

    def read(
        self, path: str | None, view: str, labels: str, top: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Yield progress, model input, report, :meth:`bars`, images and HTML of the similar studies.

        Of an image outside the training data the message begins with, and in the end is, a notice.
        """
        return self._while_shown(request, self._read(path, view, labels, top))

    def _read(self, path: str | None, view: str, labels: str, top: float) -> Iterator[tuple[Any, ...]]:
        steps = STEPS if self._service.index is not None else STEPS[:-1]
        at = [f"{step} … ({number} of {len(steps)})" for number, step in enumerate(steps, 1)]
        same = gr.skip()
        yield at[0], *[None] * 6
        shown = self.show(path, view)
        notice = OUTSIDE if self._service.is_outside(self._service.read(path, view)) else ""
        at = [f"{notice}\n\n{text}".strip() for text in at]
        yield at[1], shown, *[same] * 5
        for report in self.report(path, view):
            yield same, same, report, *[same] * 4
        yield at[2], *[same] * 6
        scores = self.bars(self.findings(path, view, labels))
        yield notice if self._service.index is None else at[3], same, same, *scores, same, same
        if self._service.index is not None:
            rows = self.similar(path, view, top)
            # The prompt scores again: of a folded component Gradio keeps only the newest update, here an empty one.
            yield notice, *[same] * 3, scores[1], self.thumbnails(rows), studies_html(rows)

    def rescore(self, path: str | None, view: str, labels: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Yield progress and :meth:`bars` of :meth:`findings`."""

        def steps() -> Iterator[tuple[Any, ...]]:
            yield f"{STEPS[2]} …", None, None
            yield "", *self.bars(self.findings(path, view, labels))

        return self._while_shown(request, steps())

    def compare(self, path: str | None, view: str, text: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Yield progress or the answer of :meth:`match`, and the weaker scores."""

        def steps() -> Iterator[tuple[Any, ...]]:
            yield "Comparing image and text …", ""
            yield self.match(path, view, text)[2:]

        return self._while_shown(request, steps())

    def locate(self, path: str | None, view: str, text: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Yield progress and :meth:`similarity_map`; apart from :meth:`compare`, since it may generate images."""

        def steps() -> Iterator[tuple[Any, ...]]:
            yield "Comparing the codes with the text …", None
            yield "", self.similarity_map(path, view, text)

        return self._while_shown(request, steps())

    def generate(self, *options: Any) -> Iterator[tuple[Any, ...]]:
        """Yield progress and :meth:`draw`; the table of matches is shown if it has any."""
        yield "Generating …", "", None, gr.update(visible=False)
        prompt, images, matches = self.draw(*options)
        shown = gr.update(value=matches, visible=bool(matches["data"]))
        yield self._prompt_notice(prompt), prompt or "No text: any radiograph.", images, shown

    def _prompt_notice(self, prompt: str) -> str:
        """Return what the model cannot show of a prompt, or ""."""
        if not prompt:
            return ""
        if untrained := self._service.not_learned(prompt):
            return f"The model was not trained on {', '.join(untrained)}: the radiographs do not show it."
        return "" if self._service.states_findings(prompt) else _UNKNOWN_PROMPT

    def encode(self, path: str | None, view: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Yield progress, :meth:`tokens`, and the decoded image again, to compare it with edited ones."""

        def steps() -> Iterator[tuple[Any, ...]]:
            yield "Encoding …", *[None] * 4
            codes, rendered, decoded = self.tokens(path, view)
            yield "", codes, rendered, decoded, decoded

        return self._while_shown(request, steps())

    def fill(self, *options: Any) -> Iterator[tuple[Any, ...]]:
        """Yield no message and :meth:`edit`."""
        yield "", *self.edit(*options)

    def bars(self, rows: Rows) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return HTML bars and a table of prompt scores (:data:`PROMPT_COLUMNS`) for the rows of :meth:`findings`.

        The bars are the sampled-report probabilities. The prompt scores, which can contradict them, are weaker.

        If none of the names has one: the percentile in the index, or without an index the softmax.
        """
        prompts = table(PROMPT_COLUMNS, [[name, *scores] for name, _, *scores in rows])
        sampled = [(name, value, of_samples(value)) for name, value, *_ in rows if value is not None]
        untrained = {name: self._service.untrained(name) for name, *_ in rows}
        known = [row for row in rows if not untrained[row[0]]]
        if sampled or not known:
            label, bars = f"Findings: fraction of {SAMPLES} sampled reports", sampled
        elif all(percentile is not None for *_, percentile in known):
            label = "Findings: percentile in the index (100% = highest)"
            bars = [(name, percentile, percent(percentile)) for name, *_, percentile in known]
        else:
            label = "Findings: statement over denial, not calibrated"
            bars = [(name, preference, small(preference)) for name, _, preference, *_ in known]
        bars += [(name, None, not_trained_on(findings)) for name, findings in untrained.items() if findings]
        return gr.update(value=bars_html(bars), label=f"{label}; {NO_RISK}"), prompts

    def thumbnails(self, rows: Rows) -> list[tuple[np.ndarray, str]]:
        """Return the images for the rows of :meth:`similar`, of studies that have one."""
        images = self._service.index_images
        return [(images[study], f"similarity {cosine:.2f}") for _, cosine, study, *_ in rows if study in images]


def entered(value: float | None, name: str) -> float:
    """Return the value of a number field; ``name`` says what it holds, "a seed".

    Raises:
        UserError: if the field was left empty.
    """
    if value is None:
        raise UserError(f"enter {name}")
    return value


def match_texts(found: TextMatch) -> tuple[str, str]:
    """Return the answer for the page, and the weaker scores; no score in them reads 0."""
    cosine = f"Cosine similarity of the embeddings: {found.similarity:.3f}"
    if found.percentile is not None:
        cosine += f", higher than for {percent(found.percentile)} of the index's studies"
    head = f"probability {small(found.probability)}."
    if found.whole_report:
        answer, weaker = [f"Match head: {head}"], [f"{cosine}."]
    else:
        answer = [
            f"{'States' if stated else 'Denies'} "
            f"{'a normal radiograph' if name == NO_FINDING else f'{name} (side, size and place not compared)'}: "
            f"{of_samples(agree)} sampled reports agree."
            for name, stated, agree in found.agreement
        ]
        weaker = [f"{cosine}.", f"Match head, trained on whole reports: {head}"]
    if not found.finding or not (answer or found.untrained or found.uncertain):
        # Of such a text no score means anything.
        answer, weaker = [_NOTHING_KNOWN], []
    if found.uncertain and not found.whole_report:
        answer.append(f"The text leaves {', '.join(found.uncertain)} open: no score.")
    if found.untrained:
        # A score would read as if the finding were absent.
        answer.append(not_trained_on(found.untrained))
        weaker = weaker if found.agreement or found.whole_report else []
    return "\n\n".join(answer), "\n\n".join(weaker)


def not_trained_on(findings: Sequence[str]) -> str:
    """Return why findings by name have no score."""
    return f"The model was not trained on {', '.join(findings)}: no score."


def of_samples(fraction: float) -> str:
    """Return a fraction of the sampled reports in words: "50% of 16", or "none of 16"."""
    return f"{f'{fraction:.0%}' if fraction else 'none'} of {SAMPLES}"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage; one that would read 0% as "less than 1%"."""
    return "less than 1%" if fraction < 0.005 else f"{fraction:.0%}"


def bars_html(bars: Sequence[tuple[str, float | None, str]]) -> str:
    """Return bars as HTML, each a name, a length from 0 to 1 (None: no bar) and the text of the value."""
    lines = []
    for name, length, text in bars:
        bar = "" if length is None else f'<progress max="1" value="{float(length):.4f}"></progress>'
        name, text = html.escape(str(name)), html.escape(text)
        lines.append(f'<div class="bar">{bar}<span>{name}</span> <span>{text}</span></div>')
    return "".join(lines)


def studies_html(rows: Rows) -> str:
    """Return the rows of :meth:`Endpoints.similar` as HTML, a list that needs no wide page."""
    studies = []
    for rank, similarity, *texts in rows:
        study, view, findings, impression = (html.escape(" ".join(str(text or "").split())) for text in texts)
        head = f"{rank}. similarity {similarity:.3f}, study {study}{f', {view}' if view else ''}"
        sections = (("Findings", findings), ("Impression", impression))
        body = "".join(f"<p><em>{name}:</em> {text}</p>" for name, text in sections if text)
        studies.append(f'<div class="study"><p><strong>{head}</strong></p>{body}</div>')
    return "".join(studies)


def small(probability: float) -> str:
    """Return a probability with three decimals; one that would read 0 as "< 0.001"."""
    return "< 0.001" if probability < 0.001 else f"{probability:.3f}"


def table(columns: Sequence[str], rows: Rows) -> dict[str, Any]:
    """Return a Dataframe's value: exact numbers, shown with three decimals."""
    shown = [[_shown(column, cell) for column, cell in zip(columns, row, strict=True)] for row in rows]
    return {"headers": list(columns), "data": rows, "metadata": {"display_value": shown}}


def _shown(column: str, cell: Any) -> str:
    if cell is None or isinstance(cell, str) or column == "seed":
        return "" if cell is None else str(cell)
    if column.startswith("percentile"):
        return percent(cell)
    return f"{cell:.3f}" if column == "similarity" else small(cell)
