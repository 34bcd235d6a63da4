"""``medunifier synthesize``: draw radiographs from reports or findings, as PNG or DICOM marked synthetic."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.synthetic import describe_drawing, save_synthetic_dicom, save_synthetic_png
from shared.artifacts import write_json
from shared.config import parse_config
from shared.errors import UserError
from shared.progress import Progress
from stage2_unified.drawing_prompts import DrawingPrompt, read_prompts
from stage2_unified.report_text import LABEL_TEMPLATE, report_of, text_of_labels

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
    seed: int = 0
    """Radiograph i is drawn with seed + i."""
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
    from stage2_unified.inference import MedUnifierPipeline  # here: --help does not wait for torch and transformers

    prompts = [prompt for prompt in _prompts(config) for _ in range(prompt.count)]
    if not prompts:
        raise UserError(f"{config.file} asks for no radiograph: every count is 0")
    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    out = Path(config.out)
    suffix = "png" if config.format == "png" else "dcm"
    plan = [
        {"file": f"{number:06d}.{suffix}", "seed": config.seed + number, "view": prompt.view, **prompt.report}
        for number, prompt in enumerate(prompts)
    ]
    drawing = {"guidance": config.guidance, "temperature": config.temperature, "top_k": config.top_k,
               "top_p": config.top_p}  # fmt: skip
    model = pipeline.fingerprint
    _begin(out, {"model": model, **drawing, "images": plan})
    todo = [number for number, row in enumerate(plan) if not (out / str(row["file"])).is_file()]
    with Progress(len(plan), "drawing", "images", done=len(plan) - len(todo)) as progress:
        for run in _consecutive(todo, config.batch_size):
            codes = pipeline.draw(
                [prompts[number].report for number in run],
                [prompts[number].view for number in run],
                seed=config.seed + run[0],
                guidance=config.guidance,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
            )
            for number, pixels in zip(run, pipeline.decode(codes), strict=True):
                path, prompt = out / str(plan[number]["file"]), prompts[number]
                description = describe_drawing(
                    prompt.report, model=model, seed=config.seed + number, guidance=config.guidance
                )
                if config.format == "png":
                    save_synthetic_png(path, pixels, description)
                else:
                    save_synthetic_dicom(path, pixels, description, prompt.view)
            progress.advance(len(run))
    print(f"{out}: {len(plan)} synthetic radiographs")


def _begin(out: Path, plan: dict[str, object]) -> None:
    """Write the plan, or check that the folder was begun with it."""
    path = out / PROMPTS
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != plan:
            raise UserError(f"{out} holds drawings of other prompts, options or another model: give another --out")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: give another --out")
    else:
        write_json(path, plan)


def _consecutive(numbers: list[int], most: int) -> list[list[int]]:
    """Runs of consecutive numbers, since a batch's seeds are consecutive."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1 and len(runs[-1]) < most:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _prompts(config: SynthesizeConfig) -> list[DrawingPrompt]:
    if config.file:
        return read_prompts(Path(config.file), config.count, config.view, config.label_template)
    report = report_of(config.text)
    if config.labels:
        report = report_of(text_of_labels(config.labels.split(","), config.label_template))
    return [DrawingPrompt(report, config.count, config.view)]
