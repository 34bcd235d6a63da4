"""The page's layout: three tabs, and which button asks for what. What is asked lies in :mod:`.endpoints`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from medunifier.shared.report_page.notice import MODEL_LIMITS, research_notice
from medunifier.stage2_unified.app.answers import MOST_DRAWN, MOST_LABELS, VIEWS, Answers
from medunifier.stage2_unified.app.code_grid import WAYS
from medunifier.stage2_unified.app.endpoints import DRAWN, FOUND, SCORES, Endpoints
from medunifier.stage2_unified.app.phantoms import Example
from medunifier.stage2_unified.app.security.arguments import CheckedBlocks
from medunifier.stage2_unified.app.security.uploads import Uploads
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.inference.prompts import FINDINGS

TITLE = "medunifier: read and draw chest radiographs"
NOTICE = research_notice(MODEL_LIMITS, "Do not upload what may not leave its hospital.", markdown=True)
_EXAMPLE_TEXTS = (
    "Heart size is normal. There is a large left pleural effusion. No evidence of pneumothorax.",
    "The cardiac silhouette is moderately enlarged. Lungs are clear. There is no pneumothorax or pleural effusion.",
    "The heart is not enlarged. There is no consolidation. No evidence of pleural effusion or pneumothorax.",
)
# One model, so one question at a time, whatever the tab.
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
_BY_PAGE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def build_page(answers: Answers, examples: Sequence[Example], uploads: Uploads) -> CheckedBlocks:
    """The page with its endpoints.

    Args:
        answers: the model at work.
        examples: radiographs to try.
        uploads: what clients uploaded.
    """
    ask = Endpoints(answers, examples)
    with CheckedBlocks(title=TITLE, analytics_enabled=False) as page:
        page.uploads, page.public_files = uploads, frozenset(str(example.path) for example in examples)
        gr.Markdown(f"# {TITLE}\n{_about(answers.pipeline)}", elem_id="title")
        gr.Markdown(NOTICE, elem_id="notice")
        with gr.Tab("Read"):
            film, view = _read_tab(ask, answers, examples)
        with gr.Tab("Draw"):
            _draw_tab(ask)
        with gr.Tab("Tokens"):
            _tokens_tab(ask, answers.pipeline, film, view)
    return page


def _about(pipeline: MedUnifierPipeline) -> str:
    tokenizer, weights = pipeline.tokenizer, sum(p.numel() for p in pipeline.model.parameters())
    return (
        f"{weights / 1e6:.1f} million weights; {tokenizer.image_size} x {tokenizer.image_size} pixels are "
        f"{tokenizer.grid[0]} x {tokenizer.grid[1]} of {tokenizer.codebook_size} codes"
    )


def _endpoint(event: Callable[..., Any], function: Callable[..., Any], *boxes: Any, public: bool = True) -> Any:
    """Let an event call an endpoint; under its name in the HTTP API too, if public."""
    named = {"api_name": function.__name__} if public else {"api_visibility": "private"}
    # A second click waits for nothing; a second film must not be dropped because the first is still read.
    mode = "once" if public else "multiple"
    return event(function, *boxes, trigger_mode=mode, **named, **_ONE_AT_A_TIME)


def _read_tab(ask: Endpoints, answers: Answers, examples: Sequence[Example]) -> tuple[gr.File, gr.Dropdown]:
    """A film's report, findings, match and neighbours. Returns the boxes of the film and of its view."""
    indexed = answers.index is not None
    with gr.Row():
        with gr.Column(scale=5):
            film = gr.File(label="Drop a radiograph: DICOM, PNG, JPEG", type="filepath", height=170, elem_id="film")
            with gr.Row(equal_height=True):
                view = gr.Dropdown(VIEWS, value=VIEWS[0], label="View", elem_id="view", scale=2)
                read = gr.Button("Read again", elem_id="read", scale=1)
            gr.Markdown("Or try a phantom: a drawn film whose findings are known.")
            thumbnails = gr.Gallery(
                [(str(example.path), f"phantom {number}") for number, example in enumerate(examples, 1)],
                show_label=False, columns=4, height=275, allow_preview=False, interactive=False, buttons=[],
                elem_id="examples", elem_classes="film",
            )  # fmt: skip
            shown = gr.Image(
                label="What the model sees", type="numpy", format="png", interactive=False, height=330,
                buttons=["download", "fullscreen"], elem_id="shown", elem_classes="film",
            )  # fmt: skip
            with gr.Group():
                typed = gr.Textbox(
                    label="Does this text go with the film?", placeholder="Small left pleural effusion.",
                    elem_id="typed",
                )  # fmt: skip
                match = gr.Button("Match", elem_id="match")
                with gr.Row():
                    matched = gr.Number(None, label="Probability (match head)", interactive=False, elem_id="matched")
                    cosine = gr.Number(None, label="Similarity (contrast)", interactive=False)
        with gr.Column(scale=6):
            written = gr.Textbox(
                label="Draft report, not checked by anybody", lines=4, interactive=False, elem_id="report",
                placeholder="Drop a radiograph, or click a phantom: the report appears here as it is written.",
            )  # fmt: skip
            truth = gr.Markdown(visible=False, elem_id="truth", container=True)
            shares = gr.Label(
                label="Findings: how many of some sampled drafts state them; no risk of a disease",
                num_top_classes=MOST_LABELS, show_heading=False, elem_id="findings",
            )  # fmt: skip
            with gr.Accordion("Other findings, and the numbers", open=False):
                with gr.Row(equal_height=True):
                    labels = gr.Textbox(
                        ", ".join(answers.index.about.get("findings", ())) if answers.index else "",
                        label="Findings to score, with commas", placeholder="empty: the usual 13", scale=4,
                        elem_id="labels",
                    )  # fmt: skip
                    score = gr.Button("Score", scale=1)
                scored = gr.Dataframe(
                    headers=list(SCORES), datatype=["str", *["number"] * 4], type="array",
                    interactive=False, buttons=[],
                    label="Share of drafts that state it; a sentence's softmax over its denial, its similarity, "
                    "and the share of the index that scores lower",
                )  # fmt: skip
            with gr.Group(visible=indexed):
                top = gr.Slider(1, 20, value=4, step=1, label="Most similar studies")
                neighbours = gr.Gallery(
                    show_label=False, columns=4, height=175, interactive=False, buttons=[], elem_id="neighbours",
                    elem_classes="film", visible=bool(answers.pictures), allow_preview=False,
                )  # fmt: skip
                found = gr.Dataframe(
                    headers=list(FOUND), datatype=["number", "number", *["str"] * 4], type="array", wrap=True,
                    interactive=False, show_label=False, elem_id="found", buttons=[],
                    column_widths=["8%", "14%", "14%", "8%", "32%", "24%"],
                )  # fmt: skip

    results = [shown, written, shares, scored, matched, cosine, neighbours, found]

    def read_after(event: Callable[..., Any], public: bool) -> None:
        seen = _endpoint(event, ask.show, [film, view], [shown], public=public)
        said = _endpoint(seen.success, ask.report, [film, view], [written], public=public)
        judged = _endpoint(said.success, ask.findings, [film, view, labels], [scored], public=public)
        barred = judged.success(ask.bars, scored, shares, queue=False, **_BY_PAGE)
        if indexed:
            compared = _endpoint(barred.success, ask.similar, [film, view, top], [found], public=public)
            compared.success(ask.pictures, found, neighbours, queue=False, **_BY_PAGE)

    read_after(read.click, public=True)
    unknown = {
        "fn": lambda: (VIEWS[0], gr.update(visible=False)),
        "outputs": [view, truth],
        "queue": False,
        **_BY_PAGE,
    }
    dropped, cleared = film.upload(**unknown), film.clear(**unknown)
    chosen = thumbnails.select(ask.choose, None, [film, view, truth], queue=False, **_BY_PAGE)
    for change in (dropped, chosen, cleared):
        # A result that stays while the next film is read would be taken for that film's.
        emptied = change.success(lambda: [None] * len(results), None, results, queue=False, **_BY_PAGE)
        if change is not cleared:
            read_after(emptied.success, public=False)
    again = functools.partial(gr.on, [score.click, labels.submit])
    rescored = _endpoint(again, ask.findings, [film, view, labels], [scored], public=False)
    rescored.success(ask.bars, scored, shares, queue=False, **_BY_PAGE)
    asked = functools.partial(gr.on, [match.click, typed.submit])
    _endpoint(asked, ask.match, [film, view, typed], [matched, cosine])
    return film, view


def _draw_tab(ask: Endpoints) -> None:
    """Radiographs from a text or from findings."""
    with gr.Row():
        with gr.Column(scale=5):
            text = gr.Textbox(
                label="Report", lines=4, elem_id="text", placeholder="Type what the radiograph should show."
            )
            gr.Examples([[example] for example in _EXAMPLE_TEXTS], [text], label="For example")
            names = gr.CheckboxGroup(list(FINDINGS), label="Or findings, where the report is empty")
            with gr.Row():
                count = gr.Slider(1, MOST_DRAWN, value=4, step=1, label="Radiographs")
                guidance = gr.Slider(0, 10, value=2, step=0.5, label="Guidance (1 = none)")
            with gr.Row():
                seed = gr.Number(value=0, precision=0, label="Seed")
                view = gr.Dropdown(VIEWS[1:], value="PA", label="View")
            # Evaluation draws at 0.6 too: at 1 a small model draws much that nobody asked for.
            temperature = gr.Slider(0, 2, value=0.6, step=0.1, label="Temperature (lower = more typical)")
            paint = gr.Button("Draw", variant="primary", elem_id="draw")
        with gr.Column(scale=6):
            drawn_from = gr.Textbox(label="Drawn from", interactive=False, placeholder="Nothing has been drawn yet.")
            gallery = gr.Gallery(
                label="Synthetic radiographs: they show no patient", columns=2, height=640, format="png",
                interactive=False, object_fit="contain", elem_id="gallery", elem_classes="film",
            )  # fmt: skip
            scores = gr.Dataframe(
                headers=list(DRAWN), datatype=["number", "number"], type="array", interactive=False, elem_id="scores",
                label="Matched back: probability that drawing and text belong together (match head)",
            )  # fmt: skip
    asked = [text, names, count, seed, guidance, view, temperature]
    _endpoint(paint.click, ask.draw, asked, [drawn_from, gallery, scores])


def _tokens_tab(ask: Endpoints, pipeline: MedUnifierPipeline, film: gr.File, view: gr.Dropdown) -> None:
    """The film's codes: look, fill a region, decode."""
    codes = gr.State(None, time_to_live=3600)
    rows, columns = pipeline.tokenizer.grid
    with gr.Row():
        with gr.Column(scale=5):
            gr.Markdown(
                f"To the model the film of the first tab is {rows} x {columns} codes: equal ones have equal colours. "
                "Click a cell to choose a region's corner, fill the region, and see it decoded."
            )
            show_codes = gr.Button("Show the film's codes", variant="primary", elem_id="tokens")
            picture = gr.Image(
                label="Codes", type="numpy", format="png", interactive=False, elem_id="grid", elem_classes="film",
                buttons=[],
            )  # fmt: skip
        with gr.Column(scale=6):
            with gr.Row():
                top = _whole_number("First row", 0, "top")
                left = _whole_number("First column", 0, "left")
                height = _whole_number("Rows", 2, "height")
                width = _whole_number("Columns", 2, "width")
            way = gr.Radio(list(WAYS), value=WAYS[0], label="Fill with", elem_id="way")
            code = _whole_number(f"The one code, from 0 to {pipeline.tokenizer.codebook_size - 1}", 0, "code")
            change = gr.Button("Fill and decode", variant="primary", elem_id="edit")
            with gr.Row():
                before = gr.Image(
                    label="Decoded as it was", type="numpy", format="png", interactive=False, elem_id="before",
                    elem_classes="film", buttons=["download"], height=300,
                )  # fmt: skip
                decoded = gr.Image(
                    label="Decoded", type="numpy", format="png", interactive=False, elem_id="decoded",
                    elem_classes="film", buttons=["download"], height=300,
                )  # fmt: skip
    film.change(lambda: [None] * 4, None, [codes, picture, before, decoded], queue=False, **_BY_PAGE)
    looked = _endpoint(show_codes.click, ask.tokens, [film, view], [codes, picture, decoded])
    looked.success(None, decoded, before, js="image => image", **_BY_PAGE)
    _endpoint(change.click, ask.edit, [codes, top, left, height, width, way, code], [codes, picture, decoded])
    picture.select(ask.pick, [codes, height, width], [top, left, picture], queue=False, **_BY_PAGE)


def _whole_number(label: str, value: int, name: str) -> gr.Number:
    # No bounds here: Gradio would keep them in words and tracebacks of its own, before ours are asked.
    return gr.Number(value=value, precision=0, label=label, min_width=80, elem_id=name)
