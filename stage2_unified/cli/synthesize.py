"""``medunifier synthesize``: generate radiographs from reports or findings, as PNG or DICOM marked synthetic."""

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
from medunifier.stage2_unified.cli.classify import warn_of_untrained
from medunifier.stage2_unified.inference.generation_prompts import GenerationPrompt, named_findings, read_prompts
from medunifier.stage2_unified.inference.inputs import codes_of, open_inputs
from medunifier.stage2_unified.inference.prompts import trained_findings, untrained
from medunifier.stage2_unified.inference.report_text import LABEL_TEMPLATE, report_of, text_of_labels

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

PROMPTS = "prompts.json"


@dataclass(frozen=True)
class SynthesizeConfig:
    """Generate chest radiographs from reports or findings; every file is marked as synthetic."""

    model: str
    """Model folder (run_dir/model)."""
    out: str
    """Folder for the images and prompts.json, which lists the prompt of each image."""
    text: str = ""
    """One report, taken as findings unless it has section headers. Without text, labels and file, generation is
    unconditional."""
    labels: str = ""
    """Instead of text: comma-separated findings, "no NAME" for a denial ("Edema, no Pneumothorax")."""
    label_template: str = LABEL_TEMPLATE
    """Sentence for each finding in labels, with its lower-case name; a denial becomes "There is no edema."."""
    file: str = ""
    """File of prompts: a .txt with one report per line; a .jsonl or .csv with findings and impression, or labels
    (separated by |), optionally with count and view."""
    count: int = 1
    """Radiographs per prompt, unless the file specifies it."""
    view: str = "PA"
    """View position (PA, AP, LATERAL), unless the file specifies it."""
    views: str = ""
    """Instead of view: comma-separated views of one study (PA,LATERAL), each conditioned on the previous ones. The
    model must have been trained with as many views (data.max_views)."""
    prior: str = ""
    """A radiograph of the prior study, to generate a follow-up. The model must have been trained with data.prior."""
    prior_view: str = ""
    """View position of prior, if its file does not specify it."""
    seed: int = 0
    """Study i uses seed + i."""
    guidance: float = 2.0
    """Classifier-free guidance scale; 1 = no guidance."""
    temperature: float = 1.0
    """Sampling temperature; 0 = greedy decoding."""
    top_k: int | None = None
    """Sample from the k most probable codes."""
    top_p: float | None = None
    """Sample from the most probable codes with cumulative probability p (nucleus sampling)."""
    format: Literal["png", "dicom"] = "png"
    """File format."""
    batch_size: int | None = None
    """Radiographs per forward pass; default: as many as the free memory of a GPU allows, 32 on a CPU."""
    device: str | None = None
    """Device of the model; default: CUDA if available, else the CPU."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.text, self.labels, self.file))) > 1:
            raise ValueError("pass only one of text, labels and file")
        if self.prior_view and not self.prior:
            raise ValueError("prior_view applies only with prior")
        if "{finding}" not in self.label_template:
            raise ValueError(f"label_template must contain {{finding}}, got {self.label_template!r}")
        if self.count < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError("count and batch_size must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")


def main(argv: Sequence[str] | None = None) -> None:
    """Generate the missing images; a folder started with the same options is completed.

    Raises:
        UserError: if there is no model, the prompt file is unreadable, or the folder has images of other options.
    """
    config = parse_config(SynthesizeConfig, argv, prog="medunifier synthesize")
    # Imported here so that --help does not wait for torch and transformers.
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

    prompts = [prompt for prompt in _prompts(config) for _ in range(prompt.count)]
    if not prompts:
        raise UserError(f"{config.file} requests no radiographs: every count is 0")
    trained = trained_findings(config.model)
    warn_of_untrained(untrained({name: None for prompt in prompts for name in prompt.labels}, trained), trained)
    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    _check_trained(pipeline, prompts, config)
    out = Path(config.out)
    suffix = "png" if config.format == "png" else "dcm"
    plan = [_rows(number, prompt, config.seed + number, suffix) for number, prompt in enumerate(prompts)]
    sampling = {"guidance": config.guidance, "temperature": config.temperature, "top_k": config.top_k,
               "top_p": config.top_p}  # fmt: skip
    prior, model = _prior(pipeline, config), pipeline.fingerprint
    prior_settings = {} if prior is None else {"prior": {"sha256": sha256_file(config.prior), "view": prior[1]}}
    images = [row for rows in plan for row in rows]
    remove_partial(out)
    begin_or_continue(out / PROMPTS, {"model": model, **sampling, **prior_settings, "images": images})
    todo = [number for number, rows in enumerate(plan) if not all((out / str(row["file"])).is_file() for row in rows)]
    left = sum(len(plan[number]) for number in todo)
    pipeline.expect(left)
    with Progress(len(images), "generating", "images", done=len(images) - left) as progress:
        for run in _consecutive(todo, pipeline.batch_size):
            codes = pipeline.generate_studies(
                [prompts[number].report for number in run],
                [prompts[number].views for number in run],
                None if prior is None else [prior] * len(run),
                seed=config.seed + run[0],
                **sampling,
            )
            rows = [(number, row) for number in run for row in plan[number]]
            for (number, row), pixels in zip(rows, pipeline.decode(np.concatenate(codes)), strict=True):
                path = out / str(row["file"])
                if path.is_file():
                    continue  # only another view of this study is missing
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
    """Return the entries of prompts.json for the radiographs of a study."""
    names = [f"{number:06d}"] if len(prompt.views) == 1 else [f"{number:06d}-{n}" for n in range(len(prompt.views))]
    return [
        {"file": f"{name}.{suffix}", "seed": seed, "view": view, **prompt.report}
        for name, view in zip(names, prompt.views, strict=True)
    ]


def _check_trained(pipeline: "MedUnifierPipeline", prompts: list[GenerationPrompt], config: SynthesizeConfig) -> None:
    """Raise before anything is written if the model was not trained with these views or with priors."""
    views = max(len(prompt.views) for prompt in prompts)
    if views > pipeline.max_views:
        raise UserError(
            f"{views} views per study were requested, but the model was trained with {pipeline.max_views} "
            "(data.max_views). Request fewer views, or generate each view as a separate study"
        )
    if config.prior and not pipeline.prior:
        raise UserError("the model was trained without prior studies (data.prior): omit --prior")


def _prior(pipeline: "MedUnifierPipeline", config: SynthesizeConfig) -> tuple[np.ndarray, str] | None:
    if not config.prior:
        return None
    if not Path(config.prior).is_file():
        raise UserError(f"prior: {config.prior} is not a file: pass a radiograph")
    image = open_inputs(config.prior, "", pipeline.tokenizer).read(0)
    if image.error:
        raise UserError(f"prior: {config.prior} cannot be read as a radiograph: {image.error}")
    return codes_of(pipeline, [image])[0], image.view or config.prior_view


def _consecutive(numbers: list[int], batch_size: int) -> list[list[int]]:
    """Split into runs of consecutive numbers: the seeds of a batch are consecutive."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1 and len(runs[-1]) < batch_size:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _prompts(config: SynthesizeConfig) -> list[GenerationPrompt]:
    if config.file:
        return read_prompts(Path(config.file), config.count, config.views or config.view, config.label_template)
    report, labels = report_of(config.text), config.labels.split(",")
    if config.labels:
        report = report_of(text_of_labels(labels, config.label_template))
    return [GenerationPrompt(report, config.count, config.views or config.view, named_findings(labels))]
