"""``medunifier synthesize``: draw radiographs from reports or findings, as PNG or DICOM marked synthetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medunifier.data.images.synthetic import (
    FOLLOW_UP,
    NOTICE,
    describe_generated_image,
    save_synthetic_dicom,
    save_synthetic_png,
)
from medunifier.shared.artifacts import remove_partial, sha256_file
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.files.settings_record import begin_or_continue
from medunifier.shared.progress import Progress
from medunifier.stage2_unified.inference.generation_prompts import GenerationPrompt, read_prompts
from medunifier.stage2_unified.inference.inputs import codes_of, open_films
from medunifier.stage2_unified.inference.report_text import LABEL_TEMPLATE, report_of, text_of_labels

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

PROMPTS = "prompts.json"


@dataclass(frozen=True)
class SynthesizeConfig:
    """Draw chest radiographs from reports or findings; every file is marked as synthetic."""

    model: str
    """Model folder (run_dir/model)."""
    out: str
    """Folder for the images and prompts.json, which says what was drawn from what."""
    text: str = ""
    """One report, taken as findings unless it has section headers; with no labels and no file either, radiographs
    are drawn without a report."""
    labels: str = ""
    """In place of a text: findings with commas, "no NAME" for a denial ("Edema, no Pneumothorax")."""
    label_template: str = LABEL_TEMPLATE
    """The sentence that a finding of labels becomes, its name in small letters; a denial is "There is no edema."."""
    file: str = ""
    """Many prompts: a .txt with a report a line; a .jsonl or a .csv with findings and impression, or labels (with |),
    and perhaps count and view."""
    count: int = 1
    """Radiographs a prompt, where the file does not say."""
    view: str = "PA"
    """View position (PA, AP, LATERAL), where the file does not say."""
    views: str = ""
    """In place of view, several with commas (PA,LATERAL): the views of one study, each drawn after those before it.
    The model must have been trained with as many (data.max_views)."""
    prior: str = ""
    """A radiograph of the visit before: its follow-up is drawn. The model must have been trained so (data.prior)."""
    prior_view: str = ""
    """View position of prior where the file does not name it."""
    seed: int = 0
    """Study i is drawn with seed + i."""
    guidance: float = 2.0
    """Strength of classifier-free guidance; 1 = none."""
    temperature: float = 1.0
    """0 takes the most probable code everywhere."""
    top_k: int | None = None
    """Draw among the k most probable codes."""
    top_p: float | None = None
    """Draw among the most probable codes that together reach p."""
    format: Literal["png", "dicom"] = "png"
    """Kind of file."""
    batch_size: int = 32
    """Radiographs a pass."""
    device: str | None = None
    """Where the model runs; an accelerator if there is one."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.text, self.labels, self.file))) > 1:
            raise ValueError("give one of text, labels and file")
        if self.prior_view and not self.prior:
            raise ValueError("prior_view goes with prior")
        if "{finding}" not in self.label_template:
            raise ValueError(f"label_template must hold {{finding}}, got {self.label_template!r}")
        if self.count < 1 or self.batch_size < 1:
            raise ValueError("count and batch_size must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what is not there yet: a folder that was begun with the same options is continued.

    Raises:
        UserError: for no model, an unreadable file of reports, a folder that holds other drawings.
    """
    config = parse_config(SynthesizeConfig, argv, prog="medunifier synthesize")
    from medunifier.stage2_unified.inference.pipeline import (
        MedUnifierPipeline,  # here: --help does not wait for torch and transformers
    )

    prompts = [prompt for prompt in _prompts(config) for _ in range(prompt.count)]
    if not prompts:
        raise UserError(f"{config.file} asks for no radiograph: every count is 0")
    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    _check_trained(pipeline, prompts, config)
    out = Path(config.out)
    suffix = "png" if config.format == "png" else "dcm"
    plan = [_rows(number, prompt, config.seed + number, suffix) for number, prompt in enumerate(prompts)]
    drawing = {"guidance": config.guidance, "temperature": config.temperature, "top_k": config.top_k,
               "top_p": config.top_p}  # fmt: skip
    prior, model = _prior(pipeline, config), pipeline.fingerprint
    before = {} if prior is None else {"prior": {"sha256": sha256_file(config.prior), "view": prior[1]}}
    images = [row for rows in plan for row in rows]
    remove_partial(out)
    begin_or_continue(out / PROMPTS, {"model": model, **drawing, **before, "images": images})
    todo = [number for number, rows in enumerate(plan) if not all((out / str(row["file"])).is_file() for row in rows)]
    left = sum(len(plan[number]) for number in todo)
    with Progress(len(images), "drawing", "images", done=len(images) - left) as progress:
        for run in _consecutive(todo, config.batch_size):
            drawn = pipeline.draw_studies(
                [prompts[number].report for number in run],
                [prompts[number].views for number in run],
                None if prior is None else [prior] * len(run),
                seed=config.seed + run[0],
                **drawing,
            )
            rows = [(number, row) for number in run for row in plan[number]]
            for (number, row), pixels in zip(rows, pipeline.decode(np.concatenate(drawn)), strict=True):
                path = out / str(row["file"])
                if path.is_file():
                    continue  # of a study that lost one of its views
                description = describe_generated_image(
                    prompts[number].report, model=model, seed=config.seed + number, guidance=config.guidance
                )
                notice = NOTICE if prior is None else FOLLOW_UP
                if config.format == "png":
                    save_synthetic_png(path, pixels, description, notice)
                else:
                    save_synthetic_dicom(path, pixels, description, str(row["view"]), notice)
            progress.advance(len(rows))
    print(f"{out}: {len(images)} synthetic radiographs")


def _rows(number: int, prompt: GenerationPrompt, seed: int, suffix: str) -> list[dict[str, object]]:
    """What prompts.json says of each radiograph of a study."""
    names = [f"{number:06d}"] if len(prompt.views) == 1 else [f"{number:06d}-{n}" for n in range(len(prompt.views))]
    return [
        {"file": f"{name}.{suffix}", "seed": seed, "view": view, **prompt.report}
        for name, view in zip(names, prompt.views, strict=True)
    ]


def _check_trained(pipeline: "MedUnifierPipeline", prompts: list[GenerationPrompt], config: SynthesizeConfig) -> None:
    """Say before anything is written what the model was not trained to draw."""
    most = max(len(prompt.views) for prompt in prompts)
    if most > pipeline.max_views:
        raise UserError(
            f"{most} views of one study were asked for, the model was trained with {pipeline.max_views} "
            "(data.max_views): give fewer views, or draw each as a study of its own"
        )
    if config.prior and not pipeline.prior:
        raise UserError("the model was trained without the visit before (data.prior): leave prior out")


def _prior(pipeline: "MedUnifierPipeline", config: SynthesizeConfig) -> tuple[np.ndarray, str] | None:
    if not config.prior:
        return None
    if not Path(config.prior).is_file():
        raise UserError(f"prior: {config.prior} is no file: give a radiograph")
    film = open_films(config.prior, "", pipeline.tokenizer).read(0)
    if film.error:
        raise UserError(f"prior: {config.prior} cannot be read as a radiograph: {film.error}")
    return codes_of(pipeline, [film])[0], film.view or config.prior_view


def _consecutive(numbers: list[int], most: int) -> list[list[int]]:
    """Runs of consecutive numbers, since a batch's seeds are consecutive."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1 and len(runs[-1]) < most:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _prompts(config: SynthesizeConfig) -> list[GenerationPrompt]:
    if config.file:
        return read_prompts(Path(config.file), config.count, config.views or config.view, config.label_template)
    report = report_of(config.text)
    if config.labels:
        report = report_of(text_of_labels(config.labels.split(","), config.label_template))
    return [GenerationPrompt(report, config.count, config.views or config.view)]
