"""``medunifier evaluate TASK``: one JSON with every circumstance, and one page beside it."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from medunifier.shared.artifacts import read_json
from medunifier.shared.config import Subcommand, parse_subcommand
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_JSON_BYTES, read_bounded
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.frozen import CODEBOOK, FrozenTokenizer
from medunifier.stage2_unified.evaluate import compare
from medunifier.stage2_unified.evaluate.external import embeddings as other_embeddings
from medunifier.stage2_unified.evaluate.external import images as other_images
from medunifier.stage2_unified.evaluate.external import reports as other_reports
from medunifier.stage2_unified.evaluate.results.files import print_figures, remove_remnants, write_result
from medunifier.stage2_unified.evaluate.results.result import (
    EvaluationContext,
    EvaluationOptions,
    Pipeline,
    TaskResult,
)
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from medunifier.stage2_unified.evaluate.tasks.finetune import evaluate_finetune
from medunifier.stage2_unified.evaluate.tasks.reports import evaluate_reports
from medunifier.stage2_unified.evaluate.tasks.retrieval import evaluate_retrieval
from medunifier.stage2_unified.evaluate.tasks.synthesis import evaluate_synthesis
from medunifier.stage2_unified.evaluate.tasks.tokenizer import TokenizerEvaluation, evaluate_tokenizer_task
from medunifier.stage2_unified.evaluate.tasks.zero_shot import evaluate_zero_shot

# Tasks of the whole model; `tokenizer` is judged without it.
MODEL_TASKS: dict[str, Callable[[EvaluationContext], TaskResult]] = {
    "retrieval": evaluate_retrieval,
    "zero-shot": evaluate_zero_shot,
    "reports": evaluate_reports,
    "synthesis": evaluate_synthesis,
    "finetune": evaluate_finetune,
}
TASKS = ("tokenizer", *MODEL_TASKS)
WITH_REPORTS = ("retrieval", "reports", "synthesis", "all")
"""Tasks whose figures depend on which sections make a report."""

DESCRIPTION = (
    "Evaluate a model or a tokenizer by one TASK or by all of them, evaluate the outputs of another system "
    "(external-…), or compare two results. Subsets of published protocols: medunifier subset."
)


@dataclass(frozen=True)
class EvaluateConfig(EvaluationOptions):
    """Evaluate a model or a tokenizer on a shard folder."""

    model: str
    """Model folder; for the task tokenizer also a frozen tokenizer's folder."""
    data: str
    """Shard folder: image shards for any task, or token shards for retrieval, zero-shot, reports and finetune."""
    out: str
    """Result file, NAME.json; the page NAME.html and the folder NAME-pictures lie beside it."""
    ids: str | None = None
    """File with the ids of the studies to evaluate, of `medunifier subset` or one id a line; --limit is ignored."""
    sections: str | None = None
    """Sections that make a report; by default the data's. If the model was trained on others, this is required."""
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


SUBCOMMANDS = {
    "tokenizer": Subcommand(EvaluateConfig, "reconstruction: PSNR, SSIM, codebook usage, findings that survive"),
    "retrieval": Subcommand(EvaluateConfig, "image-text retrieval and matching: recall and precision at k, AUROC"),
    "zero-shot": Subcommand(EvaluateConfig, "zero-shot classification by prompts: AUROC, F1, accuracy"),
    "reports": Subcommand(EvaluateConfig, "report generation: BLEU, ROUGE-L, CIDEr, clinical F1"),
    "synthesis": Subcommand(EvaluateConfig, "image generation: label AUROC, FID, KID, precision, recall, copies"),
    "finetune": Subcommand(EvaluateConfig, "linear probe and fine-tuning with a percentage of the labels; masks"),
    "all": Subcommand(EvaluateConfig, "every task that the data allow"),
    "external-reports": Subcommand(other_reports.ExternalReportsConfig, description=other_reports.DESCRIPTION),
    "external-images": Subcommand(other_images.ExternalImagesConfig, description=other_images.DESCRIPTION),
    "external-embeddings": Subcommand(
        other_embeddings.ExternalEmbeddingsConfig, description=other_embeddings.DESCRIPTION
    ),
    "compare": Subcommand(compare.CompareConfig, description=compare.DESCRIPTION, positional=True),
}
EXTERNAL = {
    "external-reports": other_reports,
    "external-images": other_images,
    "external-embeddings": other_embeddings,
}


def main(argv: Sequence[str]) -> None:
    """Run ``medunifier evaluate TASK …``.

    Raises:
        UsageError: for an unknown task or option.
        UserError: for data or a model that the task cannot be evaluated on.
    """
    task, config = parse_subcommand(
        SUBCOMMANDS, argv, prog="medunifier evaluate", metavar="TASK", description=DESCRIPTION
    )
    command = shlex.join(["medunifier", "evaluate", *argv])
    if task == "compare":
        compare.run(config)
    elif task in EXTERNAL:
        EXTERNAL[task].run(config, command)
    else:
        tokenizer, pipeline = load_model(config.model, task, config.device)
        print_figures(evaluate(task, config, tokenizer, pipeline, command), config.out)


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
    from medunifier.stage2_unified.inference.pipeline import (
        MedUnifierPipeline,  # transformers' import: not for --help
    )

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
    data = EvaluationData(config.data, tokenizer, config.seed, config.sections, ids)
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
    """Read ids from a file of ``medunifier subset``, or one a line.

    Raises:
        UserError: if the file is absent or holds none.
    """
    if path.endswith(".json"):
        content = read_json(path, "a published subset")
        found = content.get("ids") if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise UserError(f'{path} has no "ids": pass a file written by `medunifier subset`')
    else:
        try:
            text = read_bounded(path, MAX_JSON_BYTES).decode("utf-8")
            found = [line.strip() for line in text.splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise UserError(f"the file of ids {path} cannot be read: {error}") from None
    if not found:
        raise UserError(f"{path} holds no ids")
    return set(found)


def _check_sections(task: str, config: EvaluateConfig, data: EvaluationData, pipeline: Pipeline) -> list[str]:
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
    data: EvaluationData,
    tokenizer: FrozenTokenizer,
    pipeline: Pipeline | None,
    alone: bool,
) -> TaskResult:
    if name == "tokenizer":
        judging = TokenizerEvaluation(**{f.name: getattr(config, f.name) for f in fields(TokenizerEvaluation)})
        # Beside synthesis it need not train the judge of findings: that task has the decoded originals, too.
        return evaluate_tokenizer_task(tokenizer, data, judging if alone else replace(judging, classifier_steps=0))
    assert pipeline is not None
    options = {f.name: getattr(config, f.name) for f in fields(EvaluationOptions)}
    return MODEL_TASKS[name](EvaluationContext(pipeline, data, **options, **_sight(pipeline)))


def _sight(pipeline: Pipeline) -> dict[str, Any]:
    """What the model was trained to see beside one image of a study; nothing, where a pipeline does not say."""
    sight = {"max_views": getattr(pipeline, "max_views", 1), "prior": getattr(pipeline, "prior", False)}
    return {name: value for name, value in sight.items() if value not in (1, False)}
