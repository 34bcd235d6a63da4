"""``medunifier evaluate TASK``: one JSON with every circumstance, and one page beside it."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from shared.artifacts import write_json
from shared.config import parse_config
from shared.errors import UsageError, UserError
from stage1_tokenizer.frozen import CODEBOOK, FrozenTokenizer
from stage2_unified.evaluate.finetune import judge_finetune
from stage2_unified.evaluate.pages import write_page
from stage2_unified.evaluate.pictures import pictures_folder, save_pictures
from stage2_unified.evaluate.reports import judge_reports
from stage2_unified.evaluate.result import (
    Judging,
    Pipeline,
    TaskResult,
    defined,
    versions,
)
from stage2_unified.evaluate.retrieval import judge_retrieval
from stage2_unified.evaluate.studies import JudgedData
from stage2_unified.evaluate.synthesis import judge_synthesis
from stage2_unified.evaluate.tokenizer import judge_tokenizer
from stage2_unified.evaluate.zero_shot import judge_zero_shot

# Tasks of the whole model; `tokenizer` is judged without it.
MODEL_TASKS: dict[str, Callable[[Judging], TaskResult]] = {
    "retrieval": judge_retrieval,
    "zero-shot": judge_zero_shot,
    "reports": judge_reports,
    "synthesis": judge_synthesis,
    "finetune": judge_finetune,
}
TASKS = ("tokenizer", *MODEL_TASKS)


@dataclass(frozen=True)
class EvaluateConfig:
    """Judge a model; TASK is tokenizer, retrieval, zero-shot, reports, synthesis, finetune, or all of them."""

    model: str
    """Model folder; for the task tokenizer also a frozen tokenizer's folder."""
    data: str
    """Shard folder: image shards for any task, or token shards for retrieval, zero-shot, reports and finetune."""
    out: str
    """Result file, NAME.json; the page NAME.html and the folder NAME-pictures lie beside it."""
    split: str = "test"
    """Which studies are judged."""
    limit: int = 200
    """Studies that are drawn for a task; 0 = all. The size of retrieval's pool."""
    tokenizer_limit: int = 0
    """Studies for the task tokenizer; 0 = all, since codebook usage grows with the number."""
    train_limit: int = 2000
    """Training studies for synthesis' classifier and the linear probe; 0 = all."""
    seed: int = 0
    """Of every draw: studies, wrong pairs, generated images, the classifier."""
    prompts: Literal["sentence", "chexzero"] = "sentence"
    """Of zero-shot classification: "There is edema." / "There is no edema.", or "Edema." / "No edema."."""
    guidance: float = 2.0
    """Classifier-free guidance of the drawn images; 1 = none."""
    temperature: float = 1.0
    """Of the drawn images."""
    top_k: int | None = None
    """Draw image codes from the k most probable alone."""
    top_p: float | None = None
    """Draw image codes from the most probable that make up this share."""
    classifier_steps: int = 500
    """Training steps of synthesis' classifier."""
    bootstrap: int = 200
    """Resamples of the patients for an interval."""
    device: str | None = None
    """Where the model runs; an accelerator if there is one."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        for name, least in {
            "limit": 0, "tokenizer_limit": 0, "train_limit": 0, "classifier_steps": 1, "bootstrap": 2
        }.items():  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


def main(argv: Sequence[str] | None = None) -> None:
    """``medunifier evaluate TASK …``.

    Raises:
        UsageError: for an unknown task or option.
        UserError: for data or a model that the task cannot be judged on.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    task = next((name for name in (*TASKS, "all") if arguments[:1] == [name]), None)
    if task is None and not {"-h", "--help"} & set(arguments):
        given = f"got {arguments[0]}" if arguments else "none was given"
        raise UsageError(f"the first argument is the task: {', '.join(TASKS)} or all; {given}")
    config = parse_config(
        EvaluateConfig, arguments[1:] if task else arguments, prog=f"medunifier evaluate {task or 'TASK'}"
    )
    assert task is not None  # --help has left
    tokenizer, pipeline = load_model(config.model, task, config.device)
    result = evaluate(task, config, tokenizer, pipeline, shlex.join(["medunifier", "evaluate", *arguments]))
    for name, value in result["metrics"].items():
        if not name.endswith(".baseline"):
            baseline = result["metrics"].get(f"{name}.baseline")
            print(f"{name:44} {value:8.4f}" + ("" if baseline is None else f"   baseline {baseline:.4f}"))
    print(f"{config.out} and {Path(config.out).with_suffix('.html').name} written")


def load_model(folder: str, task: str, device: str | None) -> tuple[FrozenTokenizer, Pipeline | None]:
    """The tokenizer, and the model where the folder is a model's.

    Raises:
        UserError: if the folder is neither, or a task needs the model and it is a tokenizer's.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"model folder {folder} not found")
    if (path / CODEBOOK).is_file():
        if task != "tokenizer":
            raise UserError(f"{folder} is a frozen tokenizer: the task {task} needs a model folder (runs/…/model)")
        return FrozenTokenizer.from_pretrained(path), None
    from stage2_unified.inference import MedUnifierPipeline  # transformers' import: not for --help

    pipeline = MedUnifierPipeline.from_pretrained(path, device)
    return pipeline.tokenizer, pipeline


def evaluate(
    task: str, config: EvaluateConfig, tokenizer: FrozenTokenizer, pipeline: Pipeline | None, command: str
) -> dict[str, Any]:
    """Run one task, or with ``all`` each that the data allows, and write JSON, pictures and page.

    Returns:
        The JSON's content.

    Raises:
        UserError: if a named task cannot be judged on the data; with ``all``, if none can.
    """
    data = JudgedData(config.data, tokenizer, config.seed)
    if not data.has_split(config.split):
        present = ", ".join(name for name in data.manifest["splits"] if data.has_split(name)) or "none"
        raise UserError(f"{config.data} has no samples of split {config.split!r}; it has: {present}")
    results: dict[str, TaskResult] = {}
    skipped: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in TASKS if task == "all" else (task,):
        start = time.perf_counter()
        try:
            results[name] = _judge(name, config, data, tokenizer, pipeline)
        except UserError as error:
            if task != "all":
                raise
            skipped[name] = str(error)
            print(f"{name} left out: {error}", file=sys.stderr)
        seconds[name] = time.perf_counter() - start
    if not results:
        raise UserError(f"none of the tasks can be judged on {config.data}: {next(iter(skipped.values()))}")
    metrics, undefined = defined({key: value for result in results.values() for key, value in result.metrics.items()})
    content = {
        "task": task,
        "metrics": metrics,
        "undefined": undefined,
        "skipped": skipped,
        "data": data.describe(
            config.split, {name: result.studies for name, result in results.items() if result.studies is not None}
        ),
        "model": {"tokenizer": tokenizer.fingerprint} | ({"model": pipeline.fingerprint} if pipeline else {}),
        "versions": versions(),
        "command": command,
        "seed": config.seed,
        "seconds": seconds,
        "details": {name: result.details for name, result in results.items()},
    }
    out = Path(config.out)
    pictures = {name: image for result in results.values() for name, image in result.pictures.items()}
    save_pictures(pictures_folder(out), pictures)
    write_page(content, out)
    write_json(out, content)  # last: where it is, all else is
    return content


def _judge(
    name: str, config: EvaluateConfig, data: JudgedData, tokenizer: FrozenTokenizer, pipeline: Pipeline | None
) -> TaskResult:
    if name == "tokenizer":
        return judge_tokenizer(tokenizer, data, config.split, config.tokenizer_limit)
    assert pipeline is not None
    names = {f.name for f in fields(Judging)} - {"pipeline", "data"}
    options = {name: getattr(config, name) for name in names}
    return MODEL_TASKS[name](Judging(pipeline, data, **options))
