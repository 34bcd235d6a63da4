"""Layout of the page: three tabs, and the events that call :mod:`.endpoints`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from medunifier.shared.report_page.notice import MODEL_LIMITS, research_notice
from medunifier.stage2_unified.app.code_grid import WAYS
from medunifier.stage2_unified.app.endpoints import (
    ERROR,
    MATCH_COLUMNS,
    PROMPT_COLUMNS,
    SCORE_COLUMNS,
    SIMILAR_COLUMNS,
    STEPS,
    Endpoints,
    in_words,
)
from medunifier.stage2_unified.app.phantoms import Example
from medunifier.stage2_unified.app.security.arguments import CheckedBlocks
from medunifier.stage2_unified.app.security.uploads import Uploads
from medunifier.stage2_unified.app.service import MAX_IMAGES, VIEWS, ModelService
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

TITLE = "medunifier: chest radiograph understanding and generation"
_EXAMPLE_TEXTS = (
    "Heart size is normal. There is a large left pleural effusion. No evidence of pneumothorax.",
    "The cardiac silhouette is moderately enlarged. Lungs are clear. There is no pneumothorax or pleural effusion.",
    "The heart is not enlarged. There is no consolidation. No evidence of pleural effusion or pneumothorax.",
)
_FILL_LABELS = ("a single code", "the mirrored codes", "the row above")
# One model: one request at a time over all tabs.
_QUEUED: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
_PAGE_ONLY: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_NO_ANSWER = f"{ERROR} the server gave no answer. Upload the radiograph again, or try again later."


def build_page(
    service: ModelService, examples: Sequence[Example], uploads: Uploads, source: str = ""
) -> CheckedBlocks:
    """Build the page and its endpoints.

    Args:
        service: runs the model.
        examples: example radiographs.
        uploads: the upload store.
        source: data source that the model was trained on, "" if unknown.
    """
    endpoints = Endpoints(service, examples)
    with CheckedBlocks(title=TITLE, analytics_enabled=False) as page:
        page.uploads, page.public_files = uploads, frozenset(str(example.path) for example in examples)
        gr.Markdown(f"# {TITLE}\n{_about(service.pipeline)}", elem_id="title")
        limits = (MODEL_LIMITS, "Do not upload images that must not leave your institution.")
        gr.Markdown(research_notice(_trained_on(source), *limits, markdown=True), elem_id="notice")
        with gr.Tab("Report"):
            radiograph, view = _report_tab(endpoints, service, examples)
        with gr.Tab("Generate"):
            _generate_tab(endpoints, service.learned)
        with gr.Tab("Codes"):
            _codes_tab(endpoints, service.pipeline, radiograph, view)
    return page


def _trained_on(source: str) -> str:
    if source == "phantom":
        return (
            "This model was trained on phantoms (procedural radiographs) only: its output for a patient's radiograph "
            "is meaningless."
        )
    if source:
        return f"This model was trained on data of the source `{source}`."
    return "The model folder does not state which data this model was trained on."


def _about(pipeline: MedUnifierPipeline) -> str:
    tokenizer, weights = pipeline.tokenizer, sum(p.numel() for p in pipeline.model.parameters())
    return (
        f"{weights / 1e6:.1f} million parameters; {tokenizer.image_size} x {tokenizer.image_size} pixels are encoded "
        f"as {tokenizer.grid[0]} x {tokenizer.grid[1]} codes from a codebook of {tokenizer.codebook_size}"
    )


def _publish(*endpoints: tuple[Callable[..., Any], list[Any], list[Any]]) -> None:
    """Add endpoints (function, inputs, outputs) to the HTTP API under their names; nothing on the page calls them."""
    caller = gr.Button(visible=False)
    for function, inputs, outputs in endpoints:
        caller.click(function, inputs, outputs, api_name=function.__name__, **_QUEUED)


def _run(
    event: Callable[..., Any],
    handler: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    emptied: Any = None,
    once: bool = True,
    others: Sequence[gr.Markdown] = (),
    **options: Any,
) -> Any:
    """Connect an event to a handler of the page, whose first output is a message; return the event.

    Args:
        event: registers a listener.
        handler: method of :class:`Endpoints` that yields the outputs.
        inputs: components.
        outputs: components, the first for the message.
        emptied: value of the others after an error.
        once: whether the event is ignored while its handler runs.
        others: further messages of the tab, of which a success removes the errors.
        options: of the event.
    """
    results = [emptied] * (len(outputs) - 1)
    run = event(
        in_words(handler, results), inputs, outputs, trigger_mode="once" if once else "multiple",
        api_visibility="private", **_QUEUED, **options,
    )  # fmt: skip
    # An error outside the handler (a full queue, a deleted upload, a defect): without it Gradio's badge would stay.
    run.failure(lambda: (_NO_ANSWER, *results), None, outputs, queue=False, **_PAGE_ONLY)
    if others:
        _remove_errors(run.success, outputs[0], others)
    return run


def _remove_errors(event: Callable[..., Any], own: gr.Markdown, others: Sequence[gr.Markdown]) -> None:
    """Remove, in the browser alone, the error messages among ``others`` if ``own``, of the event, is none."""
    # A handler that answers an error in words succeeds for Gradio.
    event(
        None, [own, *others], list(others), queue=False, **_PAGE_ONLY,
        js=f"""(own, ...others) => {{
            const error = (text) => (text || "").startsWith({ERROR!r});
            return error(own) ? others : others.map((text) => error(text) ? "" : text);
        }}""",
    )  # fmt: skip


def _report_tab(
    endpoints: Endpoints, service: ModelService, examples: Sequence[Example]
) -> tuple[gr.File, gr.Dropdown]:
    """Build the tab for report, findings, matching and similar studies; return the components of image and view."""
    indexed = service.index is not None
    with gr.Row():
        with gr.Column(scale=5):
            radiograph = gr.File(
                label="Upload a radiograph (DICOM, PNG or JPEG)", type="filepath", height=170, elem_id="radiograph"
            )
            status = gr.Markdown("", elem_id="status", elem_classes="message")
            with gr.Row(equal_height=True):
                choices = [("from the file", VIEWS[0]), *((view, view) for view in VIEWS[1:])]
                view = gr.Dropdown(choices, value=VIEWS[0], label="View", elem_id="view", scale=2)
                read = gr.Button("Run again", elem_id="read", scale=1)
            gr.Markdown("Or try a phantom, a synthetic radiograph with known findings.")
            thumbnails = gr.Gallery(
                [(str(example.path), f"phantom {number}") for number, example in enumerate(examples, 1)],
                show_label=False, columns=4, height="auto", allow_preview=False, interactive=False, buttons=[],
                elem_id="examples", elem_classes="radiograph",
            )  # fmt: skip
            shown = gr.Image(
                label="Model input", type="numpy", format="png", interactive=False, height=330,
                buttons=["download", "fullscreen"], elem_id="shown", elem_classes="radiograph",
            )  # fmt: skip
            with gr.Group():
                typed = gr.Textbox(
                    label="Does this text match the image?", placeholder="Small left pleural effusion.",
                    elem_id="typed",
                )  # fmt: skip
                match = gr.Button("Match", elem_id="match")
                with gr.Row():
                    # Part of the HTTP API; on the page an empty number would read 0.
                    probability = gr.Number(None, label="Probability (match head)", visible=False)
                    cosine = gr.Number(None, label="Cosine similarity", visible=False)
                    matched = gr.Markdown("", padding=True, elem_id="matched", elem_classes="message")
                with gr.Accordion("Weaker scores of this text", open=False):
                    weaker = gr.Markdown("", elem_id="weaker")
                    locate = gr.Button("Mark the codes that agree", elem_id="locate")
                    locate_status = gr.Markdown("", elem_id="locate-status", elem_classes="message")
                    agreeing = gr.Image(
                        label="Codes that agree with the text, in red", type="numpy", format="png", height=200,
                        interactive=False, buttons=[], elem_id="agreeing", elem_classes="radiograph",
                    )  # fmt: skip
        with gr.Column(scale=6):
            written = gr.Textbox(
                label="Draft report (not reviewed)", lines=4, interactive=False, elem_id="report",
                placeholder="Upload a radiograph or click a phantom. The report appears here while it is generated.",
            )  # fmt: skip
            truth = gr.Markdown(visible=False, elem_id="truth", container=True)
            bars = gr.HTML(
                label="Findings: fraction of sampled reports; not the risk of a disease", show_label=True,
                container=True, padding=True, js_on_load=None, elem_id="findings",
            )  # fmt: skip
            with gr.Accordion("Other findings, and scores by prompts (weaker)", open=False):
                with gr.Row(equal_height=True):
                    labels = gr.Textbox(
                        ", ".join(service.learned), label="Findings to score, comma-separated", scale=4,
                        placeholder="empty: those of the training data", elem_id="labels",
                    )  # fmt: skip
                    score = gr.Button("Score", scale=1, elem_id="score")
                score_status = gr.Markdown("", elem_id="score-status", elem_classes="message")
                scored = gr.Dataframe(
                    headers=list(SCORE_COLUMNS), datatype=["str", *["number"] * 4], type="array", visible=False
                )
                gr.Markdown(
                    "Positive versus negative prompt: softmax of “There is …” over “There is no …”; cosine "
                    "similarity to the first; fraction of the index that scores lower. These can contradict the "
                    "sampled reports above, which are the better classifier where both were evaluated."
                )
                prompted = gr.Dataframe(
                    headers=list(PROMPT_COLUMNS), datatype=["str", *["number"] * 3], type="array", wrap=True,
                    interactive=False, buttons=[], show_label=False, elem_id="prompted",
                    column_widths=["34%", "22%", "21%", "23%"],
                )  # fmt: skip
            with gr.Group(visible=indexed):
                top = gr.Slider(1, 20, value=4, step=1, label="Most similar studies")
                neighbours = gr.Gallery(
                    show_label=False, columns=4, height="auto", interactive=False, buttons=[], elem_id="neighbours",
                    elem_classes="radiograph", visible=bool(service.index_images), allow_preview=False,
                )  # fmt: skip
                found = gr.HTML(padding=True, js_on_load=None, elem_id="found")
                found_rows = gr.Dataframe(  # of the HTTP API
                    headers=list(SIMILAR_COLUMNS), datatype=["number", "number", *["str"] * 4], type="array",
                    visible=False,
                )  # fmt: skip

    run_outputs = [status, shown, written, bars, prompted, neighbours, found]
    messages = [status, matched, score_status, locate_status]
    results = [*run_outputs[1:], *messages[1:], weaker, agreeing]

    def beside(message: gr.Markdown) -> list[gr.Markdown]:
        return [other for other in messages if other is not message]

    def say(event: Callable[..., Any], text: str) -> None:
        # In the browser alone, so that it shows at once and not when the server answers.
        event(None, None, status, js=f"() => {text!r}", queue=False, **_PAGE_ONLY)

    def run(event: Callable[..., Any], once: bool) -> None:
        inputs = [radiograph, view, labels, top]
        _run(event, endpoints.read, inputs, run_outputs, once=once, others=beside(status), show_progress="hidden")

    def empty(request: gr.Request) -> list[None]:
        endpoints.leave(request)
        return [None] * len(results)

    reset = {
        "fn": lambda: (VIEWS[0], gr.update(visible=False)),
        "outputs": [view, truth],
        "queue": False,
        **_PAGE_ONLY,
    }
    for start in (radiograph.upload, thumbnails.select, read.click):
        say(start, f"{STEPS[0]} …")
    say(radiograph.clear, "")
    run(read.click, once=True)
    uploaded, cleared = radiograph.upload(**reset), radiograph.clear(**reset)
    chosen = thumbnails.select(endpoints.choose, None, [radiograph, view, truth], queue=False, **_PAGE_ONLY)
    for change in (uploaded, chosen, cleared):
        # Results that stay while the next image is processed would be mistaken for its own.
        emptied = change.success(empty, None, results, queue=False, **_PAGE_ONLY)
        if change is not cleared:
            run(emptied.success, once=False)
    inputs = [radiograph, view, labels]
    again = functools.partial(gr.on, [score.click, labels.submit])
    outputs: list[Any] = [score_status, bars, prompted]
    _run(again, endpoints.rescore, inputs, outputs, others=beside(score_status), show_progress="hidden")
    requested = functools.partial(gr.on, [match.click, typed.submit])
    for event, handler, outputs in (
        (requested, endpoints.compare, [matched, weaker]),
        (locate.click, endpoints.locate, [locate_status, agreeing]),
    ):
        text = f"window.{handler.__name__}dText"
        event(None, [typed], None, js=f"(text) => {{ {text} = text; }}", queue=False, **_PAGE_ONLY)
        answered = _run(event, handler, [radiograph, view, typed], outputs, once=False, others=beside(outputs[0]))
        # The answer would be mistaken for that of the new text; it may also come after the change.
        stale = f"text => text === {text} ? undefined : [null, null]"
        for change in (typed.change, answered.success):
            change(None, [typed], outputs, js=stale, queue=False, **_PAGE_ONLY)
    _publish(
        (endpoints.show, [radiograph, view], [shown]),
        (endpoints.report, [radiograph, view], [written]),
        (endpoints.findings, inputs, [scored]),
        *([(endpoints.similar, [radiograph, view, top], [found_rows])] if indexed else []),
        (endpoints.match, [radiograph, view, typed], [probability, cosine, matched, weaker]),
    )
    return radiograph, view


def _generate_tab(endpoints: Endpoints, learned: Sequence[str]) -> None:
    """Build the tab for image generation from a report or from findings."""
    with gr.Row():
        with gr.Column(scale=5):
            text = gr.Textbox(
                label="Report", lines=4, elem_id="text", placeholder="Describe the findings of the radiograph."
            )
            gr.Examples([[example] for example in _EXAMPLE_TEXTS], [text], label="Examples")
            names = gr.CheckboxGroup(list(learned), label="Or findings, if the report is empty")
            with gr.Row():
                count = gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Number of radiographs")
                guidance = gr.Slider(0, 10, value=2, step=0.5, label="Guidance scale (1 = none)")
            with gr.Row():
                seed = gr.Number(value=0, precision=0, label="Seed")
                view = gr.Dropdown(VIEWS[1:], value="PA", label="View")
            # As in the evaluation: at temperature 1, a small model generates findings that are not in the prompt.
            temperature = gr.Slider(0, 2, value=0.6, step=0.1, label="Temperature (lower = more typical)")
            generate = gr.Button("Generate", variant="primary", elem_id="generate")
            status = gr.Markdown("", elem_id="generate-status", elem_classes="message")
        with gr.Column(scale=6):
            prompt = gr.Textbox(label="Prompt of the radiographs below", interactive=False, elem_id="prompt")
            gallery = gr.Gallery(
                label="Synthetic radiographs (no patient)", columns=2, height=640, format="png",
                interactive=False, object_fit="contain", elem_id="gallery", elem_classes="radiograph",
            )  # fmt: skip
            scores = gr.Dataframe(
                headers=list(MATCH_COLUMNS), datatype=["number", "number"], type="array",
                interactive=False, elem_id="scores", visible=False,
                label="Probability that generated image and prompt match (match head; needs a report, not a phrase)",
            )  # fmt: skip
    options = [text, names, count, seed, guidance, view, temperature]
    outputs = [status, prompt, gallery, scores]
    _run(generate.click, endpoints.generate, options, outputs, show_progress_on=[gallery])
    _publish((endpoints.draw, options, outputs[1:]))


def _codes_tab(endpoints: Endpoints, pipeline: MedUnifierPipeline, radiograph: gr.File, view: gr.Dropdown) -> None:
    """Build the tab that shows the codes of the image, edits a region and decodes it."""
    codes = gr.State(None, time_to_live=3600)
    rows, columns = pipeline.tokenizer.grid
    with gr.Row():
        with gr.Column(scale=5):
            gr.Markdown(
                f"The image of the first tab as {rows} x {columns} codes; equal codes have equal colours. "
                "Click a code to set the corner of a region, then fill the region and decode the result."
            )
            show_codes = gr.Button("Show the codes", variant="primary", elem_id="tokens")
            status = gr.Markdown("", elem_id="tokens-status", elem_classes="message")
            code_map = gr.Image(
                label="Codes", type="numpy", format="png", interactive=False, elem_id="grid",
                elem_classes="radiograph", buttons=[],
            )  # fmt: skip
        with gr.Column(scale=6):
            with gr.Row():
                top = _integer("First row", 0, "top")
                left = _integer("First column", 0, "left")
                height = _integer("Rows", 2, "height")
                width = _integer("Columns", 2, "width")
            way = gr.Radio(
                list(zip(_FILL_LABELS, WAYS, strict=True)), value=WAYS[0], label="Fill with", elem_id="way"
            )
            code = _integer(f"Code, from 0 to {pipeline.tokenizer.codebook_size - 1}", 0, "code")
            change = gr.Button("Fill and decode", variant="primary", elem_id="edit")
            edit_status = gr.Markdown("", elem_id="edit-status", elem_classes="message")
            with gr.Row():
                before = gr.Image(
                    label="Decoded before editing", type="numpy", format="png", interactive=False, elem_id="before",
                    elem_classes="radiograph", buttons=["download"], height=300,
                )  # fmt: skip
                decoded = gr.Image(
                    label="Decoded", type="numpy", format="png", interactive=False, elem_id="decoded",
                    elem_classes="radiograph", buttons=["download"], height=300,
                )  # fmt: skip
    outputs = [status, codes, code_map, decoded, before]
    radiograph.change(lambda: [None] * 6, None, [*outputs, edit_status], queue=False, **_PAGE_ONLY)
    _run(show_codes.click, endpoints.encode, [radiograph, view], outputs, others=[edit_status])
    region, shown = [codes, top, left, height, width, way, code], [codes, code_map, decoded]
    _run(change.click, endpoints.fill, region, [edit_status, *shown], emptied=gr.skip(), others=[status])
    _publish((endpoints.tokens, [radiograph, view], shown), (endpoints.edit, region, shown))
    picked = code_map.select(endpoints.pick, [codes, height, width], [top, left, code_map], queue=False, **_PAGE_ONLY)
    _remove_errors(picked.success, status, [edit_status])


def _integer(label: str, value: int, name: str) -> gr.Number:
    # No bounds here: Gradio would check them first, with its own messages and tracebacks.
    return gr.Number(value=value, precision=0, label=label, min_width=80, elem_id=name)
