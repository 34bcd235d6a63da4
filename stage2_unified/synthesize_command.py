"""``medunifier synthesize``: draw radiographs from reports, as PNG or DICOM marked synthetic."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.sections import split_sections
from data.synthetic import save_synthetic_dicom, save_synthetic_png
from shared.artifacts import write_json
from shared.config import parse_config
from shared.errors import UsageError, UserError
from shared.progress import Progress
from stage2_unified.inference import MedUnifierPipeline

PROMPTS = "prompts.json"


@dataclass(frozen=True)
class SynthesizeConfig:
    """Draw chest radiographs from reports; every file is marked as synthetic."""

    model: str
    """Model folder (run_dir/model)."""
    out: str
    """Folder for the images and prompts.json, which says what was drawn from what."""
    text: str = ""
    """One report, taken as findings unless it has section headers; "" with no file draws without a report."""
    file: str = ""
    """Many reports: a .txt with one a line, a .jsonl or a .csv with findings and impression."""
    count: int = 1
    """Radiographs a report."""
    view: str = "PA"
    """View position: PA, AP, LATERAL."""
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

    def __post_init__(self) -> None:
        if self.text and self.file:
            raise ValueError("give text or file, not both")
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
    reports = [report for report in _reports(config) for _ in range(config.count)]
    pipeline = MedUnifierPipeline.from_pretrained(config.model)
    out = Path(config.out)
    suffix = "png" if config.format == "png" else "dcm"
    plan = [
        {"file": f"{number:06d}.{suffix}", "seed": config.seed + number, "view": config.view, **report}
        for number, report in enumerate(reports)
    ]
    drawing = {"guidance": config.guidance, "temperature": config.temperature, "top_k": config.top_k,
               "top_p": config.top_p}  # fmt: skip
    _begin(out, {"model": pipeline.fingerprint, **drawing, "images": plan})
    todo = [number for number, row in enumerate(plan) if not (out / str(row["file"])).is_file()]
    with Progress(len(plan), "drawing", "images", done=len(plan) - len(todo)) as progress:
        for run in _consecutive(todo, config.batch_size):
            codes = pipeline.draw(
                [reports[number] for number in run],
                [config.view] * len(run),
                seed=config.seed + run[0],
                guidance=config.guidance,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
            )
            for number, pixels in zip(run, pipeline.decode(codes), strict=True):
                path, description = out / str(plan[number]["file"]), json.dumps(plan[number], ensure_ascii=False)
                if config.format == "png":
                    save_synthetic_png(path, pixels, description)
                else:
                    save_synthetic_dicom(path, pixels, description, config.view)
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


def _sections(text: str) -> dict[str, str]:
    sections = split_sections(text)
    if sections.keys() & {"findings", "impression"}:
        return {name: sections.get(name, "") for name in ("findings", "impression")}
    return {"findings": text.strip(), "impression": ""}


def _reports(config: SynthesizeConfig) -> list[dict[str, str]]:
    if not config.file:
        return [_sections(config.text)]
    path = Path(config.file)
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows = list(csv.DictReader(content.splitlines()))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in content.splitlines() if line.strip()]
        elif path.suffix == ".txt":
            return [_sections(line) for line in content.splitlines() if line.strip()]
        else:
            raise UsageError(f"file must be .txt, .jsonl or .csv, got {path.name}")
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    reports = [{name: str(row.get(name) or "") for name in ("findings", "impression")} for row in rows]
    if not any(any(report.values()) for report in reports):
        raise UserError(f"{path} has no row with findings or impression")
    return reports
