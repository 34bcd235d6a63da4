"""The page's layout and its endpoints. All that is decided lies in :mod:`stage2_unified.app.answers`."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from data.phantom import Phantom
from shared.errors import UserError
from stage2_unified.app.answers import MOST_DRAWN, VIEWS, Answers, ReadFilm, as_uint8
from stage2_unified.app.code_grid import WAYS, Region, cell_pixels, picture_of
from stage2_unified.evaluate.prompts import FINDINGS

TITLE = "medunifier: read and draw chest radiographs"
NOTICE = (
    "**Research software, not a medical device.** It overlooks findings and invents others; a drawn radiograph "
    "shows no patient. It must not be used for the care of a person. Do not upload what may not leave its hospital."
)
_SCORES = ["finding", "statement over denial", "similarity"]
_FOUND = ["rank", "similarity", "study", "view", "findings", "impression"]
_EXAMPLE_TEXTS = (
    "Large left pleural effusion.",
    "Moderate cardiomegaly. No pleural effusion. No pneumothorax.",
    "The lungs are clear. No acute cardiopulmonary process.",
)


def _told(what: str, error: Exception) -> gr.Error:
    """A `UserError` becomes the page's message; a defect of ours is named on the server and kept from the caller."""
    if isinstance(error, UserError):
        return gr.Error(str(error), print_exception=False)
    print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return gr.Error("this failed on the server: a defect, not your file", print_exception=False)


def _in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose errors are told."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*arguments: Any) -> Iterator[Any]:
            try:
                yield from function(*arguments)
            except Exception as error:
                raise _told(function.__name__, error) from None

        return stream

    @functools.wraps(function)
    def answer(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise _told(function.__name__, error) from None

    return answer


def build_page(answers: Answers, examples: list[str]) -> gr.Blocks:
    """The page with its endpoints.

    Args:
        answers: the model at work.
        examples: files of radiographs to try.
    """
    pipeline = answers.pipeline
    grid, codes_in_all = pipeline.tokenizer.grid, pipeline.tokenizer.codes

    def show(path: str | None, view: str) -> np.ndarray:
        return as_uint8(answers.read(path, view).pixels)

    def report(path: str | None, view: str) -> Iterator[str]:
        yield from answers.report(answers.read(path, view))

    def findings(path: str | None, view: str, labels: str) -> list[list[Any]]:
        names, scores = answers.findings(answers.read(path, view), labels or "")
        columns = zip(names, scores.preference[0].tolist(), scores.similarity[0].tolist(), strict=True)
        return sorted(([name, round(p, 3), round(s, 3)] for name, p, s in columns), key=lambda row: -row[1])

    def similar(path: str | None, view: str, top: float) -> list[list[Any]]:
        rows = answers.similar(answers.read(path, view), int(top))
        for row in rows:
            row["study"] = row.get("study_id") or Path(str(row.get("path", ""))).name
        return [[row.get(name, "") for name in _FOUND] for row in rows]

    def match(path: str | None, view: str, text: str) -> tuple[float, float]:
        probability, similarity = answers.match(answers.read(path, view), text)
        return round(probability, 4), round(similarity, 4)

    def draw(
        text: str, names: list[str], count: float, seed: float, guidance: float, view: str
    ) -> tuple[str, list[tuple[str, str]], list[list[float]]]:
        drawn_from, drawn = answers.draw(text, names or [], int(count), int(seed), float(guidance), view)
        gallery = [(str(one.path), f"synthetic, seed {one.seed}") for one in drawn]
        return drawn_from, gallery, [[one.seed, round(one.match, 4)] for one in drawn if one.match is not None]

    def tokens(path: str | None, view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        film: ReadFilm = answers.read(path, view)
        return film.codes, picture_of(film.codes, codes_in_all), answers.decode(film.codes)

    def edit(
        codes: np.ndarray | None, top: float, left: float, height: float, width: float, way: str, code: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if codes is None:
            raise UserError("show the codes of a radiograph first")
        region = Region(int(top), int(left), int(height), int(width))
        changed = answers.edit(codes, region, way, int(code))
        return changed, picture_of(changed, codes_in_all, region), answers.decode(changed)

    def pick(event: gr.SelectData) -> tuple[int, int]:
        column, row = event.index
        cell = cell_pixels(grid)
        return min(row // cell, grid[0] - 1), min(column // cell, grid[1] - 1)

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n{NOTICE}")
        # One model, so one question at a time, whatever the tab.
        one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        with gr.Tab("Read"), gr.Row():
            with gr.Column():
                film = _film_box()
                view = gr.Dropdown(VIEWS, value=VIEWS[0], label="View", elem_id="view")
                read = gr.Button("Read", variant="primary", elem_id="read")
                shown = gr.Image(label="What the model sees", type="numpy", format="png", interactive=False)
                gr.Examples([[path] for path in examples], [film], label="Phantoms to try")
            with gr.Column():
                written = gr.Textbox(label="Draft report, not checked by anybody", lines=6, elem_id="report")
                labels = gr.Textbox(label="Findings to score, with commas (empty: the usual 13)")
                scored = gr.Dataframe(
                    headers=_SCORES, datatype=["str", "number", "number"], interactive=False,
                    label="Findings: softmax of a sentence over its denial; not calibrated, no risk of a disease",
                )  # fmt: skip
                typed = gr.Textbox(label="Does this text go with the film?", elem_id="typed")
                ask = gr.Button("Match")
                matched = gr.Number(label="Probability that they belong together (match head)", interactive=False)
                cosine = gr.Number(label="Similarity (contrast)", interactive=False)
                top = gr.Slider(1, 20, value=5, step=1, label="Similar studies", visible=answers.index is not None)
                found = gr.Dataframe(
                    headers=_FOUND, datatype=["number", "number", "str", "str", "str", "str"], interactive=False,
                    label="Most similar studies", visible=answers.index is not None, wrap=True,
                )  # fmt: skip
        with gr.Tab("Draw"), gr.Row():
            with gr.Column():
                text = gr.Textbox(label="Report", lines=4, elem_id="text")
                gr.Examples([[example] for example in _EXAMPLE_TEXTS], [text])
                names = gr.CheckboxGroup(list(FINDINGS), label="Or findings (where the report is empty)")
                count = gr.Slider(1, MOST_DRAWN, value=4, step=1, label="Radiographs")
                seed = gr.Number(value=0, precision=0, label="Seed")
                guidance = gr.Slider(0, 10, value=2, step=0.5, label="Guidance (1 = none)")
                drawn_view = gr.Dropdown(VIEWS[1:], value="PA", label="View")
                paint = gr.Button("Draw", variant="primary", elem_id="draw")
            with gr.Column():
                drawn_from = gr.Textbox(label="Drawn from", interactive=False)
                gallery = gr.Gallery(
                    label="Synthetic radiographs: they show no patient", columns=2, elem_id="gallery"
                )
                scores = gr.Dataframe(
                    headers=["seed", "match"], datatype=["number", "number"], interactive=False,
                    label="Matched back: probability that drawing and text belong together (match head)",
                )  # fmt: skip
        with gr.Tab("Tokens"), gr.Row():
            codes = gr.State(None, time_to_live=3600)
            with gr.Column():
                gr.Markdown(
                    f"The radiograph of the first tab as {grid[0]} x {grid[1]} codes of {codes_in_all}. "
                    "Click a cell to choose a corner, fill a region, and see it decoded."
                )
                show_codes = gr.Button("Show the codes", variant="primary", elem_id="tokens")
                top_row = gr.Number(value=0, precision=0, label="First row")
                left_column = gr.Number(value=0, precision=0, label="First column")
                height = gr.Number(value=1, precision=0, label="Rows")
                width = gr.Number(value=1, precision=0, label="Columns")
                way = gr.Radio(list(WAYS), value=WAYS[0], label="Fill with")
                code = gr.Number(value=0, precision=0, label="The one code")
                change = gr.Button("Edit", elem_id="edit")
            with gr.Column():
                code_picture = gr.Image(label="Codes", type="numpy", format="png", interactive=False, elem_id="grid")
                decoded = gr.Image(label="Decoded", type="numpy", format="png", interactive=False, elem_id="decoded")

        def on(event: Callable[..., Any], function: Callable[..., Any], *boxes: Any, **more: Any) -> Any:
            return event(_in_words(function), *boxes, api_name=function.__name__, **one_at_a_time, **more)

        seen = on(read.click, show, [film, view], [shown])
        said = on(seen.success, report, [film, view], [written])
        judged = on(said.success, findings, [film, view, labels], [scored])
        if answers.index is not None:
            on(judged.success, similar, [film, view, top], [found])
        on(ask.click, match, [film, view, typed], [matched, cosine])
        on(paint.click, draw, [text, names, count, seed, guidance, drawn_view],
           [drawn_from, gallery, scores])  # fmt: skip
        on(show_codes.click, tokens, [film, view], [codes, code_picture, decoded])
        on(change.click, edit, [codes, top_row, left_column, height, width, way, code],
           [codes, code_picture, decoded])  # fmt: skip
        code_picture.select(pick, None, [top_row, left_column], api_visibility="private", queue=False)
    return page


def _film_box() -> gr.File:
    """A file box for uploads alone: gradio would fetch an address that a client names in a file's place."""
    box = gr.File(label="Radiograph (DICOM, PNG, JPEG)", type="filepath", height=120, elem_id="film")
    move = box.async_move_resource_to_block_cache

    async def uploads_alone(place: str | Path | None) -> str | None:
        if "://" in str(place):
            raise gr.Error("give a file, not an address", print_exception=False)
        return await move(place)

    setattr(box, "async_move_resource_to_block_cache", uploads_alone)  # noqa: B010, a method of this one box
    return box


def write_examples(folder: Path, size: int, count: int = 4) -> list[str]:
    """Phantoms as PNG files; their paths."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"phantom-{number + 1}.png"
        Image.fromarray(as_uint8(Phantom(max(size, 64), 2026).study(number).images[0])).save(path)
        paths.append(str(path))
    return paths
