"""Ablation of objectives and of what joint training is helped by: the same data and steps, several seeds.

Every run is a training by ``stage2_unified/train.py`` with the same configuration, data and number of steps; only
the weights of the losses or the options in the run's name differ, and the seed sets the order of the studies and the
first weights. Each model is evaluated, as by ``medunifier evaluate``, on the tasks of its objectives. Finished runs
are kept under ``runs`` and not repeated; a training that was stopped continues.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medunifier.bench import Row, load_benchmark, machine
from medunifier.shared.artifacts import atomic_file, read_json, write_json
from medunifier.shared.errors import UserError
from medunifier.shared.training.loop import use_threads
from medunifier.stage2_unified.evaluate.command import EvaluateConfig, evaluate, load_model

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVES = ("contrast", "matching", "report", "image")
_DENSE = ("--data.statements=0", "--model.experts=none")
"""What every run begins with; the options of the run follow."""
_STATEMENTS = ("--data.statements=2", "--data.statement_tokens=16")
_EXPERTS = ("--model.experts=feed_forward",)
_TOGETHER = (*_STATEMENTS, *_EXPERTS)


@dataclass(frozen=True)
class Run:
    """Objectives whose weight is 0, and further options of the training."""

    left_out: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


RUNS = {
    "all four": Run(),
    **{f"{name} alone": Run(tuple(other for other in OBJECTIVES if other != name)) for name in OBJECTIVES},
    **{f"without {name}": Run((name,)) for name in OBJECTIVES},
    "all four, images read in both directions": Run((), ("--model.bidirectional_images=true",)),
    "all four, statements": Run((), _STATEMENTS),
    "all four, experts": Run((), _EXPERTS),
    "all four, experts of all but attention": Run((), ("--model.experts=all",)),
    "all four, losses balanced": Run((), ("--optim.balance=gradient_norm",)),
    "all four, averaged weights": Run((), ("--ema_decay=0.97",)),
    "all four, experts, understand first": Run(
        (), (*_EXPERTS, "--schedule.generate_from=200", "--schedule.reader_rate=0.1")
    ),
    "statements and experts": Run((), _TOGETHER),
    **{f"statements and experts, without {name}": Run((name,), _TOGETHER) for name in OBJECTIVES},
}
"""Name of a run -> what differs from the configuration."""

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
_FIGURES = "evaluation.json"


@dataclass(frozen=True)
class Config:
    """Train with the objectives together, alone and left out, and with each option, and evaluate every run."""

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
    seeds: int = 1
    """Trainings of each run, with the seeds 0, 1, and so on."""
    limit: int = 200
    """Number of test studies for the evaluation."""
    only: tuple[str, ...] = ()
    """Names of the runs to train, such as ["image alone"]; empty = all missing runs."""
    jobs: int = 1
    """Trainings at the same time; more than one can share a GPU, since these models are small."""
    threads: int = 1
    """CPU threads of a training; 0 = all cores."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        if unknown := [name for name in self.only if name not in RUNS]:
            raise ValueError(f"only must name some of {', '.join(RUNS)}; got {', '.join(unknown)}")
        if min(self.seeds, self.jobs) < 1:
            raise ValueError(f"seeds and jobs must be at least 1, got {self.seeds} and {self.jobs}")


def rows(config: Config) -> list[Row]:
    """Compare all four objectives (ours) with each other run (peer), for the metrics of its objectives."""
    names = [name for name in RUNS if not config.only or name in config.only]
    missing = [
        (config, name, seed)
        for seed in range(config.seeds)
        for name in names
        if not (_folder(config, name, seed) / _FIGURES).is_file()
    ]
    if config.jobs == 1:
        for task in missing:
            _run(*task)
    else:
        with ProcessPoolExecutor(
            config.jobs,
            mp_context=multiprocessing.get_context("spawn"),  # CUDA does not survive a fork
            initializer=load_benchmark,  # a new process cannot import this file by its name
            initargs=(Path(__file__).stem,),
        ) as pool:
            for future in [pool.submit(_run, *task) for task in missing]:
                future.result()
    evaluated = {name: results for name in RUNS if (results := _results(config, name))}
    if untrained := [name for name in RUNS if len(evaluated.get(name, [])) < config.seeds]:
        print(f"not trained yet: {', '.join(untrained)}")
    with atomic_file(Path(config.out).with_suffix(".md")) as partial_file:
        partial_file.write_text(_page(config, evaluated), encoding="utf-8")
    if "all four" not in evaluated:
        return []
    together = _means(evaluated["all four"])
    return [
        Row(f"{label}: all four against {name}", together[metric], values[metric], together[metric] / values[metric])
        for name, results in evaluated.items()
        if name != "all four"
        for values in [_means(results)]
        for metric, (label, _) in _metrics().items()
        if values.get(metric) and metric in together
    ]


def _metrics() -> dict[str, tuple[str, str]]:
    return {name: value for task in METRICS.values() for name, value in task.items()}


def _folder(config: Config, name: str, seed: int) -> Path:
    return Path(config.runs) / f"{name.replace(',', '').replace(' ', '-')}-seed-{seed}"


def _results(config: Config, name: str) -> list[dict[str, Any]]:
    """Return the contents of the result files of a run, by seed."""
    files = [_folder(config, name, seed) / _FIGURES for seed in range(config.seeds)]
    return [read_json(file, "a run of this benchmark") for file in files if file.is_file()]


def _means(results: list[dict[str, Any]]) -> dict[str, float]:
    return {
        metric: statistics.fmean(result["figures"][metric] for result in results) for metric in results[0]["figures"]
    }


def _run(config: Config, name: str, seed: int) -> None:
    """Train and evaluate one run."""
    folder, run = _folder(config, name, seed), RUNS[name]
    print(f"{name}, seed {seed}: {config.steps} steps", flush=True)
    use_threads(config.threads)
    start = time.perf_counter()
    options = [f"--weights.{objective}=0" for objective in run.left_out]
    _train(config, folder, [*options, *_DENSE, *run.options, f"--loop.seed={seed}"])
    seconds = time.perf_counter() - start
    values: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for task, labels in METRICS.items():
        trained = [metric for metric, (_, objective) in labels.items() if objective not in run.left_out]
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
        content = evaluate(task, evaluation, tokenizer, pipeline, f"medunifier evaluate {task}")
        values |= {metric: content["metrics"][metric] for metric in trained}
        intervals |= {metric: content["details"][task]["intervals"][metric] for metric in trained}
    figures = {"figures": values, "intervals": intervals, "training_seconds": seconds, "steps": config.steps}
    write_json(folder / _FIGURES, figures)


def _train(config: Config, folder: Path, options: list[str]) -> None:
    """Run one training in a subprocess, by the command that a user would run."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["stage2_unified/train.py", "--config", str(ROOT / config.preset), "--run_dir", str(folder.resolve())]
    command += ["--data.shards", str(Path(config.codes).resolve())]
    command += ["--tokenizer", str(Path(config.tokenizer).resolve()), "--loop.steps", str(config.steps)]
    command += ["--loop.validate_every", str(config.steps), "--loop.threads", str(config.threads)]
    command += ["--compile", "false"]  # takes longer than these trainings
    command += options
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=False).returncode:  # noqa: S603 - fixed program, arguments as a list
        raise UserError(f"the training in {folder} failed with the message above; the same command continues it")


def _page(config: Config, evaluated: dict[str, list[dict[str, Any]]]) -> str:
    about, labels = machine(), _metrics()
    device = about["gpu"] or f"{about['cpu']}, {config.threads} thread(s)"
    lines = [
        "# Ablation of the training objectives",
        "",
        f"`medunifier bench ablations{_changed(config)}` on {time.strftime('%Y-%m-%d', time.gmtime())}. Every run "
        f"trains `{config.preset}` for {config.steps} steps, with weight 0 for objectives that are left out, and is "
        f"evaluated on {config.limit} test studies of the same data. A dash: the run was not trained on that "
        "objective. These are short trainings of a small model: the values compare objectives and options and are "
        "below those of long training.",
        "",
        f"Each cell is the mean of {config.seeds} seed(s), which set the order of the studies and the first weights; "
        "± half the distance between the lowest and the highest; and, in brackets, the 95 % bootstrap interval over "
        "patients, averaged over the seeds.",
        "",
        f"Machine: {device}, torch {about['torch']}. "
        f"Data: {json.dumps(read_json(Path(config.images) / 'manifest.json', 'image shards')['source'])}.",
        "",
        f"| run | {' | '.join(label for label, _ in labels.values())} |",
        f"|---|{'---|' * len(labels)}",
    ]
    for name, results in evaluated.items():
        seeds = "" if len(results) == config.seeds else f" ({len(results)} of {config.seeds} seeds)"
        lines.append(f"| {name}{seeds} | {' | '.join(_cell(results, metric) for metric in labels)} |")
    return "\n".join([*lines, ""])


def _cell(results: list[dict[str, Any]], metric: str) -> str:
    values = [result["figures"][metric] for result in results if metric in result["figures"]]
    if not values:
        return "–"
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    low, high = (statistics.fmean(result["intervals"][metric][side] for result in results) for side in (0, 1))
    return f"{statistics.fmean(values):.3f}{spread} [{low:.3f}, {high:.3f}]"


def _changed(config: Config) -> str:
    """Return the options that are not at their defaults, with placeholders for paths."""
    values: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(config)}
    paths = {"out": "FILE.json", "runs": "DIR", "images": "DIR", "codes": "DIR", "tokenizer": "DIR"}
    return "".join(
        f" --{f.name} {paths.get(f.name, values[f.name])}" for f in fields(config) if values[f.name] != f.default
    )
