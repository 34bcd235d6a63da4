"""Run the whole pipeline on phantoms: archive, shards, tokenizer, codes, model, evaluation, and a result page.

    python scripts/demo.py --run_dir runs/demo

Each step is a command that also works on real data; it is printed before it runs. On a rerun, finished steps are
skipped and an interrupted one resumes.
"""

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunifier.shared.artifacts import read_json, write_json
from medunifier.shared.command import run_command
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.files.os_services import usable_cores
from medunifier.shared.training.hardware import processor_name

ROOT = Path(__file__).resolve().parents[1]

# Target metrics of a demo run on held-out phantom patients.
THRESHOLDS = {
    "tokenizer.psnr": 27.0,
    "tokenizer.codebook_usage": 0.9,
    "retrieval.image_to_text_r10": 0.88,
    "retrieval.text_to_image_r10": 0.88,
    "matching.auroc": 0.94,
    "zero_shot.auroc": 0.84,
    "reports.clinical_f1_micro": 0.82,
    "synthesis.label_auroc": 0.85,
}
# Targets for each finding: F1 of its mentions in reports, AUROC of its generated images and of its prompts.
FINDING_THRESHOLDS = {"reports": 0.8, "synthesis": 0.8, "zero-shot": 0.8}

# Findings that a model of two million parameters learns at 64 pixels within minutes.
FINDINGS = ("cardiomegaly", "effusion", "pneumothorax", "opacity", "nodule")


@dataclass(frozen=True)
class DemoConfig:
    """Train and evaluate a small model on 64-pixel phantoms, from the data to a result page."""

    run_dir: str = "runs/demo"
    """Output folder; index.html and metrics.json are written at the end."""
    studies: int = 4000
    """Number of phantom studies; a tenth is the test split, of which 200 are sampled."""
    seed: int = 0
    """Seed of the phantoms and of the evaluation."""
    stage1_steps: int = 0
    """Training steps of the tokenizer; 0 = the value in configs/stage1/demo.yaml."""
    stage2_steps: int = 0
    """Training steps of the model; 0 = the value in configs/stage2/demo.yaml."""


@dataclass(frozen=True)
class Step:
    """One command; ``result`` is its output, which the next step needs."""

    name: str
    command: tuple[str, ...]
    result: Path


def steps_of(config: DemoConfig) -> list[Step]:
    """Return the commands of the demo, in order."""
    run = Path(config.run_dir)
    archive, images, codes = run / "archive", run / "images", run / "codes"
    tokenizer, model = run / "stage1" / "tokenizer", run / "stage2" / "model"
    evaluation = run / "evaluation.json"
    workers = str(usable_cores())
    # All options are explicit, since the launcher warns about each default.
    launch = shlex.split(
        "accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
    )

    def steps(count: int) -> tuple[str, ...]:
        return ("--loop.steps", str(count)) if count else ()

    return [
        Step(
            "phantom",
            ("medunifier", "phantom", "--out", f"{archive}", "--studies", f"{config.studies}", "--size", "64")
            + ("--seed", f"{config.seed}", "--workers", workers, "--findings", json.dumps(FINDINGS)),
            archive,
        ),
        Step(
            "ingest",
            ("medunifier", "ingest", "--source", "phantom", "--root", f"{archive}", "--out", f"{images}")
            # The impression repeats the findings: without it sequences are a third shorter, so more fit in the time.
            + ("--size", "64", "--workers", workers, "--text", "findings", "--key_file", f"{run / 'pseudonym.key'}")
            # Phantoms are similar by construction, so a duplicate search would be slow and uninformative.
            + ("--duplicates", "ignore"),
            images,
        ),
        Step(
            "stage1",
            (*launch, "stage1_tokenizer/train.py", "--config", "configs/stage1/demo.yaml")
            + ("--data.shards", f"{images}", "--run_dir", f"{run / 'stage1'}", *steps(config.stage1_steps)),
            tokenizer,
        ),
        Step(
            "tokenize",
            ("medunifier", "tokenize", "--tokenizer", f"{tokenizer}", "--shards", f"{images}", "--out", f"{codes}"),
            codes,
        ),
        Step(
            "stage2",
            (*launch, "stage2_unified/train.py", "--config", "configs/stage2/demo.yaml", "--data.shards", f"{codes}")
            + ("--tokenizer", f"{tokenizer}", "--run_dir", f"{run / 'stage2'}", *steps(config.stage2_steps)),
            model,
        ),
        Step(
            "evaluate",
            ("medunifier", "evaluate", "all", "--model", f"{model}", "--data", f"{images}", "--out", f"{evaluation}")
            # A small model generates better images at a lower temperature.
            + ("--seed", f"{config.seed}", "--temperature", "0.6")
            # Four short runs: enough to compare pre-trained with randomly initialized weights.
            + ("--finetune.steps", "60", "--finetune.batch_size", "16", "--finetune.shares", "[10, 100]"),
            evaluation,
        ),
    ]


def run_steps(steps: Sequence[Step], log: Path) -> dict[str, float]:
    """Run the commands sequentially in the repository root, with their output unbuffered.

    Args:
        steps: the commands to run.
        log: JSON file of the seconds per step, summed over all runs until it finished.

    Returns:
        Seconds by step.

    Raises:
        UserError: at the first command that fails; later ones are not started.
    """
    record: dict[str, Any] = read_json(log, "the demo's record") if log.is_file() else {}
    for number, step in enumerate(steps, start=1):
        entry = record.setdefault(step.name, {"seconds": 0.0, "finished": False})
        print(f"\n[{number}/{len(steps)}] {step.name}\n$ {shlex.join(step.command)}", flush=True)
        if step.result.is_file() and _newer(step.result, steps[number - 2].result):
            print(f"{step.result} is there already", flush=True)
            continue
        start = time.perf_counter()
        code = subprocess.run([_program(step.command[0]), *step.command[1:]], cwd=ROOT, check=False).returncode  # noqa: S603 - fixed program, arguments as a list
        seconds = time.perf_counter() - start
        if not entry["finished"]:  # a rerun of a finished step is not timed
            entry["seconds"] += seconds
        entry["finished"] = entry["finished"] or code == 0
        write_json(log, record)
        if code:
            raise UserError(
                f"step {step.name} failed with exit code {code}, see its message above; "
                "after fixing the cause, the same command resumes here"
            )
        print(f"{step.name}: {seconds:.0f} s", flush=True)
    return {step.name: record[step.name]["seconds"] for step in steps}


def _newer(result: Path, source: Path) -> bool:
    """Return whether a result file is newer than its source."""
    return source.exists() and result.stat().st_mtime > source.stat().st_mtime


def _program(name: str) -> str:
    """Return the path of a command in this Python's environment, before any on PATH."""
    installed = Path(sys.executable).with_name(name)
    found = str(installed) if installed.is_file() else shutil.which(name)
    if not found:
        raise UserError(f"the command {name} is not installed beside {sys.executable}: pip install -e . in {ROOT}")
    return found


def machine() -> dict[str, Any]:
    """Return cores and processor, to interpret the timings."""
    return {"cores": usable_cores(), "cpu": processor_name(), "system": platform.system()}


def write_results(run: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Write ``metrics.json`` and ``index.html`` of a finished run, and return the content of the former."""
    evaluation = read_json(run / "evaluation.json", "a finished demo")
    versions = {"medunifier": importlib.metadata.version("medunifier")} | evaluation["versions"]
    content = evaluation["metrics"] | {
        "thresholds": THRESHOLDS,
        "source": evaluation["data"]["source"],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "machine": machine(),
        "versions": versions,
    }
    write_page(run, evaluation, content)
    write_json(run / "metrics.json", content)
    return content


def write_page(run: Path, evaluation: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write the page: thresholds, a section for every task, training curves, time."""
    # Imported late, since importing torch takes seconds.
    from medunifier.shared.report_page.page import Page
    from medunifier.shared.report_page.plots import curve_panels
    from medunifier.stage2_unified.evaluate.results.definitions import definitions_of
    from medunifier.stage2_unified.evaluate.results.pages import BASELINE, TITLES, add_tasks, findings_below
    from medunifier.stage2_unified.evaluate.results.pictures import pictures_folder

    page = Page(
        "medunifier: one model that understands and generates chest radiographs",
        f"Trained from scratch on {evaluation['data']['counts']['train']} studies at 64 pixels, "
        f"evaluated on held-out patients. {BASELINE}",
        source=evaluation["data"]["source"],
    )
    metrics = evaluation["metrics"]
    page.section("Thresholds")
    compared = {name: value for name, value in metrics.items() if name.removesuffix(".baseline") in THRESHOLDS}
    intervals = {
        name: bounds for task in evaluation["details"].values() for name, bounds in task["intervals"].items()
    }
    page.metrics(compared, THRESHOLDS, intervals=intervals)
    page.definitions(definitions_of(compared))
    # Averages hide a finding that the model does not recognize.
    for task, below in findings_below(evaluation, FINDING_THRESHOLDS).items():
        listed = ", ".join(f"{finding} ({value:.2f})" for finding, value in below.items())
        page.paragraph(f"{TITLES[task]}, findings below {FINDING_THRESHOLDS[task]:.2f}: {listed or 'none'}.")
    order = ("tokenizer", "synthesis", "reports", "retrieval", "zero-shot", "finetune")
    details = {task: evaluation["details"][task] for task in order if task in evaluation["details"]}
    pictures = pictures_folder(run / "evaluation.json")
    add_tasks(page, {**evaluation, "details": details}, pictures, FINDING_THRESHOLDS, shown=compared)
    for stage, title in (("stage1", "Training the tokenizer"), ("stage2", "Training the model")):
        page.section(f"{title}: curves over steps")
        page.curves(curve_panels(run / stage))
    page.section("Time")
    total = sum(content["seconds"].values())
    page.table(["step", "seconds"], [*content["seconds"].items(), ("total", round(total, 1))])
    page.paragraph(f"On {content['machine']['cores']} cores of {content['machine']['cpu']}, without installation.")
    page.table(["package", "version"], list(content["versions"].items()))
    page.save(run / "index.html")


def main(argv: Sequence[str]) -> None:
    """Run the demo and print the metrics and the path of the page.

    Raises:
        UserError: if a step fails.
    """
    config = parse_config(DemoConfig, argv, prog="scripts/demo.py")
    run = ROOT / config.run_dir
    start = time.perf_counter()
    os.chdir(ROOT)
    seconds = run_steps(steps_of(config), run / "seconds.json")
    content = write_results(run, seconds)
    print()
    for name, threshold in THRESHOLDS.items():
        value, baseline = content.get(name), content.get(f"{name}.baseline")
        if value is None:
            print(f"{name:32} not evaluated (see evaluation.json)")
        else:
            verdict = "reached" if value >= threshold else "NOT REACHED"
            print(f"{name:32} {value:8.3f}   baseline {baseline:6.3f}   threshold {threshold:5.2f}   {verdict}")
    print(f"\n{time.perf_counter() - start:.0f} s; open {run / 'index.html'}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
