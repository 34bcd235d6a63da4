"""``medunifier evaluate TASK``: one JSON with every circumstance, and one page beside it."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from shared.artifacts import read_json
from shared.config import parse_config
from shared.errors import UsageError, UserError
from stage1_tokenizer.config import PerceptualConfig
from stage1_tokenizer.frozen import CODEBOOK, FrozenTokenizer
from stage2_unified.evaluate.finetune import judge_finetune
from stage2_unified.evaluate.reports import judge_reports
from stage2_unified.evaluate.result import Judging, JudgingOptions, Pipeline, TaskResult
from stage2_unified.evaluate.retrieval import judge_retrieval
from stage2_unified.evaluate.studies import JudgedData
from stage2_unified.evaluate.synthesis import judge_synthesis
from stage2_unified.evaluate.tokenizer import TokenizerJudging, judge_tokenizer
from stage2_unified.evaluate.written_result import print_figures, remove_remnants, write_result
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
WITH_REPORTS = ("retrieval", "reports", "synthesis", "all")
"""Tasks whose figures depend on which sections make a report."""

# Other forms of the command: (first argument or "", option that tells) -> module with a main of its own.
OTHER_FORMS = {
    ("", "--compare"): "stage2_unified.evaluate.compare",
    ("", "--draw"): "stage2_unified.evaluate.draws",
    ("reports", "--predictions"): "stage2_unified.evaluate.other_reports",
    ("synthesis", "--generated"): "stage2_unified.evaluate.other_images",
    ("retrieval", "--embeddings"): "stage2_unified.evaluate.other_embeddings",
}

DESCRIPTION = (
    "Judge a model; TASK is tokenizer, retrieval, zero-shot, reports, synthesis, finetune, or all of them. "
    "Other systems' outputs, no model needed: `evaluate reports --predictions FILE.csv --references FILE.csv`, "
    "`evaluate synthesis --generated DIR --real DIR`, `evaluate retrieval --embeddings FILE.npz`. "
    "Two results: `evaluate --compare A.json B.json`. Published draws: `evaluate --draw 5x200 | 8x200 | pool | "
    "prompts`. Each of these has a --help of its own."
)


@dataclass(frozen=True)
class EvaluateConfig(JudgingOptions):
    """Judge a model; TASK is tokenizer, retrieval, zero-shot, reports, synthesis, finetune, or all of them."""

    model: str
    """Model folder; for the task tokenizer also a frozen tokenizer's folder."""
    data: str
    """Shard folder: image shards for any task, or token shards for retrieval, zero-shot, reports and finetune."""
    out: str
    """Result file, NAME.json; the page NAME.html and the folder NAME-pictures lie beside it."""
    ids: str | None = None
    """File with the ids of the studies to judge: what --draw wrote, or one id a line; --limit is set aside."""
    sections: str | None = None
    """Sections that make a report; the data's. A model trained on others is refused unless this says so."""
    tokenizer_limit: int = 0
    """Studies for the task tokenizer; 0 = all, since codebook usage grows with the number."""
    perceptual: PerceptualConfig = field(default_factory=lambda: PerceptualConfig("none"))
    """Net of the tokenizer's LPIPS or distance of radiograph features; none unless one is named."""
    bootstrap: int = 200
    """Resamples of the patients for an interval."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        for name, least in {
            "limit": 0, "tokenizer_limit": 0, "train_limit": 0, "classifier_steps": 10, "bootstrap": 2,
            "rerank": 0, "variety_prompts": 0, "variety_images": 2,
        }.items():  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


def main(argv: Sequence[str] | None = None) -> None:
    """``medunifier evaluate TASK …``, and its other forms.

    Raises:
        UsageError: for an unknown task or option.
        UserError: for data or a model that the task cannot be judged on.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    wants_help = bool({"-h", "--help"} & set(arguments))
    for (first, option), module in OTHER_FORMS.items():
        given = any(argument == option or argument.startswith(f"{option}=") for argument in arguments)
        if given and (arguments[0] == first or (not first and arguments[0].startswith("--"))):
            import_module(module).main(["--help"] if wants_help else arguments[1:] if first else arguments)
            return
    task = next((name for name in (*TASKS, "all") if arguments[:1] == [name]), None)
    if task is None and not wants_help:
        given_first = f"got {arguments[0]}" if arguments else "none was given"
        raise UsageError(f"the first argument is the task: {', '.join(TASKS)} or all; {given_first}")
    config = parse_config(
        EvaluateConfig,
        arguments[1:] if task else arguments,
        prog=f"medunifier evaluate {task or 'TASK'}",
        description=DESCRIPTION,
    )
    assert task is not None  # --help has left
    tokenizer, pipeline = load_model(config.model, task, config.device)
    result = evaluate(task, config, tokenizer, pipeline, shlex.join(["medunifier", "evaluate", *arguments]))
    print_figures(result, config.out)


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
    remove_remnants(Path(config.out))
    ids = None
    if config.ids is not None:
        ids, config = read_ids(config.ids), replace(config, limit=0)
    data = JudgedData(config.data, tokenizer, config.seed, config.sections, ids)
    if not data.has_split(config.split):
        present = ", ".join(name for name in data.manifest["splits"] if data.has_split(name)) or "none"
        raise UserError(f"{config.data} has no samples of split {config.split!r}; it has: {present}")
    notes = _check_sections(task, config, data, pipeline) if pipeline else []
    results: dict[str, TaskResult] = {}
    skipped: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in TASKS if task == "all" else (task,):
        start = time.perf_counter()
        try:
            results[name] = _judge(name, config, data, tokenizer, pipeline, alone=task != "all")
        except UserError as error:
            if task != "all":
                raise
            skipped[name] = str(error)
            print(f"{name} left out: {error}", file=sys.stderr)
        seconds[name] = time.perf_counter() - start
    if not results:
        raise UserError(f"none of the tasks can be judged on {config.data}: {next(iter(skipped.values()))}")
    judged = {name: result.studies for name, result in results.items() if result.studies is not None}
    return write_result(
        config.out,
        task=task,
        results=results,
        data=data.describe(config.split, judged),
        model={"tokenizer": tokenizer.fingerprint}
        | ({"model": pipeline.fingerprint, "sections": pipeline.sections, **_sight(pipeline)} if pipeline else {}),
        command=command,
        seed=config.seed,
        bootstrap=config.bootstrap,
        skipped=skipped,
        seconds=seconds,
        notes=notes,
    )


def read_ids(path: str) -> set[str]:
    """Ids from what ``--draw`` wrote, or one a line.

    Raises:
        UserError: if the file is absent or holds none.
    """
    if path.endswith(".json"):
        content = read_json(path, "a published draw")
        found = content.get("ids") if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise UserError(f'{path} has no "ids": give a file that `medunifier evaluate --draw` wrote')
    else:
        try:
            found = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise UserError(f"the file of ids {path} cannot be read: {error}") from None
    if not found:
        raise UserError(f"{path} holds no ids")
    return set(found)


def _check_sections(task: str, config: EvaluateConfig, data: JudgedData, pipeline: Pipeline) -> list[str]:
    """Refuse references of sections that the model was not trained on, unless they were asked for.

    A model of findings judged on findings and impression would be blamed in every word figure for what it
    never learned to write, and its text embeddings would not read what tells two reports apart. The figures
    would look like a poor model's. So it is an error with the remedy in it, and a note in result and page
    for whoever insists.
    """
    if data.sections == pipeline.sections or task not in WITH_REPORTS:
        return []
    if config.sections is None:
        raise UserError(
            f"the model was trained on {pipeline.sections}, the reports of {config.data} are {data.sections}: give "
            f"--sections {pipeline.sections} to judge it on what it learned to write, or --sections {data.sections} "
            "to judge it on these all the same"
        )
    return [
        f"The model was trained on {pipeline.sections} and is judged on {data.sections}, as --sections asked for."
    ]


def _judge(
    name: str,
    config: EvaluateConfig,
    data: JudgedData,
    tokenizer: FrozenTokenizer,
    pipeline: Pipeline | None,
    alone: bool,
) -> TaskResult:
    if name == "tokenizer":
        judging = TokenizerJudging(**{f.name: getattr(config, f.name) for f in fields(TokenizerJudging)})
        # Beside synthesis it need not train the judge of findings: that task has the decoded originals, too.
        return judge_tokenizer(tokenizer, data, judging if alone else replace(judging, classifier_steps=0))
    assert pipeline is not None
    options = {f.name: getattr(config, f.name) for f in fields(JudgingOptions)}
    return MODEL_TASKS[name](Judging(pipeline, data, **options, **_sight(pipeline)))


def _sight(pipeline: Pipeline) -> dict[str, Any]:
    """What the model was trained to see beside one image of a study; nothing, where a pipeline does not say."""
    sight = {"max_views": getattr(pipeline, "max_views", 1), "prior": getattr(pipeline, "prior", False)}
    return {name: value for name, value in sight.items() if value not in (1, False)}
