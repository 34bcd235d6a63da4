"""What each objective gives and takes: all four at once, each alone, each left out, trained and judged alike.

Every run is a training by ``stage2_unified/train.py`` with the same configuration, data, order and number of steps;
only the weights of the losses differ. One more run has all four, and reads images in both directions. Each is judged
by ``medunifier evaluate`` on what its losses could teach it. Whatever is finished is kept under ``runs`` and not made
again; a training that was stopped continues.
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
BOTH_WAYS = "all four, images read in both directions"
RUNS[BOTH_WAYS] = ()

# Task of `evaluate` -> figure -> (what it is called, the objective that teaches it).
FIGURES = {
    "retrieval": {
        "retrieval.image_to_text_r10": ("R@10, image to report", "contrast"),
        "retrieval.text_to_image_r10": ("R@10, report to image", "contrast"),
        "matching.auroc": ("matching, AUROC", "matching"),
    },
    "reports": {"reports.clinical_f1_micro": ("clinical F1 of written reports, micro", "report")},
    "synthesis": {"synthesis.label_auroc": ("label AUROC of drawn radiographs", "image")},
}


@dataclass(frozen=True)
class Config:
    """Train the four objectives together, each alone and each left out, and judge every run."""

    out: str
    """File for the table, NAME.json; NAME.md lies beside it."""
    runs: str
    """Folder of the trainings; what is finished there is not made again."""
    images: str
    """Image shards, which synthesis is judged against."""
    codes: str
    """Token shards of the same studies."""
    tokenizer: str
    """The frozen tokenizer that made them."""
    preset: str = "configs/stage2/demo.yaml"
    """Configuration of every training."""
    steps: int = 400
    """Of each training."""
    limit: int = 200
    """Test studies that are judged."""
    only: str = ""
    """One run alone, such as "image alone"; empty = all that are missing."""
    threads: int = 1
    """CPU threads; 0 = all cores."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        if self.only and self.only not in RUNS:
            raise ValueError(f"only must be one of {', '.join(RUNS)}; got {self.only}")


def rows(config: Config) -> list[Row]:
    """All four objectives (ours) beside each of the other runs (peer), where the run was taught the figure."""
    for name, left_out in RUNS.items():
        if config.only in ("", name):
            _run(config, name, left_out)
    judged = {
        name: read_json(path, "a run of this benchmark")["figures"]
        for name in RUNS
        if (path := _folder(config, name) / "judged.json").is_file()
    }
    missing = [name for name in RUNS if name not in judged]
    if missing:
        print(f"still to be trained: {', '.join(missing)}")
    with atomic_file(Path(config.out).with_suffix(".md")) as partial_file:
        partial_file.write_text(_page(config, judged), encoding="utf-8")
    together = judged.get("all four")
    if together is None:
        return []
    return [
        Row(
            f"{called}: all four beside {name}", together[figure], figures[figure], together[figure] / figures[figure]
        )
        for name, figures in judged.items()
        if name != "all four"
        for figure, (called, _) in _figures().items()
        if figures.get(figure)
    ]


def _figures() -> dict[str, tuple[str, str]]:
    return {name: value for task in FIGURES.values() for name, value in task.items()}


def _folder(config: Config, name: str) -> Path:
    return Path(config.runs) / name.replace(",", "").replace(" ", "-")


def _run(config: Config, name: str, left_out: tuple[str, ...]) -> None:
    folder = _folder(config, name)
    if (folder / "judged.json").is_file():
        return
    print(f"{name}: {config.steps} steps", flush=True)
    start = time.perf_counter()
    changed = [f"--weights.{objective}=0" for objective in left_out]
    _train(config, folder, [*changed, "--model.bidirectional_images=true"] if name == BOTH_WAYS else changed)
    seconds = time.perf_counter() - start
    figures: dict[str, float] = {}
    for task, named in FIGURES.items():
        taught = [figure for figure, (_, objective) in named.items() if objective not in left_out]
        if not taught:
            continue
        options = EvaluateConfig(
            model=str(folder / "model"),
            data=config.images,
            out=str(folder / f"{task}.json"),
            limit=config.limit,
            temperature=0.6,  # as the demo draws
        )
        tokenizer, pipeline = load_model(options.model, task, None)
        metrics = evaluate(task, options, tokenizer, pipeline, f"medunifier evaluate {task}")["metrics"]
        figures |= {figure: metrics[figure] for figure in taught}
    write_json(folder / "judged.json", {"figures": figures, "training_seconds": seconds, "steps": config.steps})


def _train(config: Config, folder: Path, options: list[str]) -> None:
    """One training in a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["stage2_unified/train.py", "--config", str(ROOT / config.preset), "--run_dir", str(folder.resolve())]
    command += ["--data.shards", str(Path(config.codes).resolve())]
    command += ["--tokenizer", str(Path(config.tokenizer).resolve()), "--loop.steps", str(config.steps)]
    command += ["--loop.validate_every", str(config.steps), "--loop.threads", str(config.threads)]
    command += options
    if subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode:
        raise UserError(f"the training in {folder} failed, its message stands above; the same command continues it")


def _page(config: Config, judged: dict[str, dict[str, float]]) -> str:
    about, named = machine(), _figures()
    lines = [
        "# What each objective gives and takes",
        "",
        f"`medunifier bench ablations{_changed(config)}` on {time.strftime('%Y-%m-%d', time.gmtime())}: every run is "
        f"`{config.preset}` for {config.steps} steps on the same studies in the same order, with the weights of some "
        f"losses at 0; judged on {config.limit} test studies of its data. A dash: the run was not taught that. "
        "Short trainings of a small model: they compare, and are not what a long one reaches.",
        "",
        f"Machine: {about['cpu']}, {config.threads} thread(s), torch {about['torch']}. "
        f"Data: {json.dumps(read_json(Path(config.images) / 'manifest.json', 'image shards')['source'])}.",
        "",
        f"| run | {' | '.join(called for called, _ in named.values())} |",
        f"|---|{'---|' * len(named)}",
    ]
    for name, figures in judged.items():
        shown = [f"{figures[figure]:.3f}" if figure in figures else "–" for figure in named]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def _changed(config: Config) -> str:
    """The options that are not at their defaults, folders by their kind alone."""
    given: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(config)}
    paths = {"out": "FILE.json", "runs": "DIR", "images": "DIR", "codes": "DIR", "tokenizer": "DIR"}
    return "".join(
        f" --{f.name} {paths.get(f.name, given[f.name])}" for f in fields(config) if given[f.name] != f.default
    )
