"""Ablation of the objectives: all four together, each alone, and each left out, on the same data.

Every run is a training by ``stage2_unified/train.py`` with the same configuration, data, order and number of steps;
only the weights of the losses differ. Further runs have all four and other options. ``medunifier evaluate``
evaluates each run on the tasks of its objectives. Finished runs are kept under ``runs`` and not repeated; a training
that was stopped continues.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medunifier.bench import Row, machine
from medunifier.shared.artifacts import atomic_file, read_json, write_json
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.evaluate.command import EvaluateConfig, evaluate, load_model

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVES = ("contrast", "matching", "report", "image")
RUNS = {
    "all four": (),
    **{f"{name} alone": tuple(other for other in OBJECTIVES if other != name) for name in OBJECTIVES},
    **{f"without {name}": (name,) for name in OBJECTIVES},
}
"""Name of a run -> objectives whose weight is 0."""
_EXPERTS = "--model.experts=feed_forward"
OPTIONS = {
    "all four, images read in both directions": ("--model.bidirectional_images=true",),
    "all four, statements": ("--data.statements=2", "--data.statement_tokens=24"),
    "all four, experts": (_EXPERTS,),
    "all four, experts of all but attention": ("--model.experts=all",),
    "all four, losses balanced": ("--optim.balance=gradient_norm",),
    "all four, experts, losses balanced": (_EXPERTS, "--optim.balance=gradient_norm"),
    "all four, experts, understand first": (_EXPERTS, "--schedule.generate_from=200", "--schedule.reader_rate=0.1"),
}
"""Name of a run with all objectives -> options of its training."""
RUNS |= dict.fromkeys(OPTIONS, ())

# Task of `evaluate` -> metric -> (its label, the objective that trains it).
METRICS = {
    "retrieval": {
        "retrieval.image_to_text_r10": ("R@10, image to report", "contrast"),
        "retrieval.text_to_image_r10": ("R@10, report to image", "contrast"),
        "matching.auroc": ("matching, AUROC", "matching"),
    },
    "zero-shot": {"zero_shot.auroc": ("zero-shot AUROC", "contrast")},
    "reports": {"reports.clinical_f1_micro": ("clinical F1 of generated reports, micro", "report")},
    "synthesis": {"synthesis.label_auroc": ("label AUROC of generated radiographs", "image")},
}


@dataclass(frozen=True)
class Config:
    """Train with the four objectives together, each alone and each left out, and evaluate every run."""

    out: str
    """File for the table, NAME.json; the page is written to NAME.md."""
    runs: str
    """Folder of the trainings; finished ones are not repeated."""
    images: str
    """Image shards that the models are evaluated on."""
    codes: str
    """Token shards of the same studies."""
    tokenizer: str
    """Folder of the frozen tokenizer that made the token shards."""
    preset: str = "configs/stage2/demo.yaml"
    """Configuration of every training."""
    steps: int = 400
    """Steps of each training."""
    limit: int = 200
    """Number of test studies for the evaluation."""
    only: str = ""
    """Name of a single run, such as "image alone"; empty = all missing runs."""
    threads: int = 1
    """CPU threads; 0 = all cores."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        if self.only and self.only not in RUNS:
            raise ValueError(f"only must be one of {', '.join(RUNS)}; got {self.only}")


def rows(config: Config) -> list[Row]:
    """Compare all four objectives (ours) with each other run (peer), for the metrics of its objectives."""
    for name, left_out in RUNS.items():
        if config.only in ("", name):
            _run(config, name, left_out)
    evaluated = {
        name: read_json(path, "a run of this benchmark")["figures"]
        for name in RUNS
        if (path := _folder(config, name) / "evaluation.json").is_file()
    }
    missing = [name for name in RUNS if name not in evaluated]
    if missing:
        print(f"not trained yet: {', '.join(missing)}")
    with atomic_file(Path(config.out).with_suffix(".md")) as partial_file:
        partial_file.write_text(_page(config, evaluated), encoding="utf-8")
    together = evaluated.get("all four")
    if together is None:
        return []
    return [
        Row(
            f"{label}: all four against {name}",
            together[metric],
            values[metric],
            together[metric] / values[metric],
        )
        for name, values in evaluated.items()
        if name != "all four"
        for metric, (label, _) in _metrics().items()
        if values.get(metric) and metric in together
    ]


def _metrics() -> dict[str, tuple[str, str]]:
    return {name: value for task in METRICS.values() for name, value in task.items()}


def _folder(config: Config, name: str) -> Path:
    return Path(config.runs) / name.replace(",", "").replace(" ", "-")


def _run(config: Config, name: str, left_out: tuple[str, ...]) -> None:
    folder = _folder(config, name)
    if (folder / "evaluation.json").is_file():
        return
    print(f"{name}: {config.steps} steps", flush=True)
    start = time.perf_counter()
    options = [f"--weights.{objective}=0" for objective in left_out]
    _train(config, folder, [*options, *OPTIONS.get(name, ())])
    seconds = time.perf_counter() - start
    values: dict[str, float] = {}
    for task, labels in METRICS.items():
        trained = [metric for metric, (_, objective) in labels.items() if objective not in left_out]
        if not trained:
            continue
        evaluation = EvaluateConfig(
            model=str(folder / "model"),
            data=config.images,
            out=str(folder / f"{task}.json"),
            limit=config.limit,
            temperature=0.6,  # as in the demo
        )
        tokenizer, pipeline = load_model(evaluation.model, task, None)
        metrics = evaluate(task, evaluation, tokenizer, pipeline, f"medunifier evaluate {task}")["metrics"]
        values |= {metric: metrics[metric] for metric in trained}
    write_json(folder / "evaluation.json", {"figures": values, "training_seconds": seconds, "steps": config.steps})


def _train(config: Config, folder: Path, options: list[str]) -> None:
    """Run one training in a subprocess, by the command that a user would run."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["stage2_unified/train.py", "--config", str(ROOT / config.preset), "--run_dir", str(folder.resolve())]
    command += ["--data.shards", str(Path(config.codes).resolve())]
    command += ["--tokenizer", str(Path(config.tokenizer).resolve()), "--loop.steps", str(config.steps)]
    command += ["--loop.validate_every", str(config.steps), "--loop.threads", str(config.threads)]
    command += options
    if subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode:  # noqa: S603 - fixed program, arguments as a list
        raise UserError(f"the training in {folder} failed with the message above; the same command continues it")


def _page(config: Config, evaluated: dict[str, dict[str, float]]) -> str:
    about, labels = machine(), _metrics()
    lines = [
        "# Ablation of the training objectives",
        "",
        f"`medunifier bench ablations{_changed(config)}` on {time.strftime('%Y-%m-%d', time.gmtime())}. Every run "
        f"trains `{config.preset}` for {config.steps} steps on the same studies in the same order, with the weights "
        f"of the excluded losses set to 0, and is evaluated on {config.limit} test studies of the same data. A dash: "
        "the run was not trained on that objective. These are short trainings of a small model: the values compare "
        "objectives and are below those of long training.",
        "",
        f"Machine: {about['cpu']}, {config.threads} thread(s), torch {about['torch']}. "
        f"Data: {json.dumps(read_json(Path(config.images) / 'manifest.json', 'image shards')['source'])}.",
        "",
        f"| run | {' | '.join(label for label, _ in labels.values())} |",
        f"|---|{'---|' * len(labels)}",
    ]
    for name, values in evaluated.items():
        cells = [f"{values[metric]:.3f}" if metric in values else "–" for metric in labels]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _changed(config: Config) -> str:
    """Return the options that are not at their defaults, with placeholders for paths."""
    values: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(config)}
    paths = {"out": "FILE.json", "runs": "DIR", "images": "DIR", "codes": "DIR", "tokenizer": "DIR"}
    return "".join(
        f" --{f.name} {paths.get(f.name, values[f.name])}" for f in fields(config) if values[f.name] != f.default
    )
