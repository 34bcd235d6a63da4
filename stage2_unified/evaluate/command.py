"""``medunifier evaluate TASK``: evaluate a model or tokenizer and write a JSON result and an HTML page."""

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
from medunifier.shared.files.text import decode_text, text_lines
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.frozen import CODEBOOK, FrozenTokenizer
from medunifier.stage2_unified.evaluate import compare
from medunifier.stage2_unified.evaluate.external import embeddings as other_embeddings
from medunifier.stage2_unified.evaluate.external import images as other_images
from medunifier.stage2_unified.evaluate.external import reports as other_reports
from medunifier.stage2_unified.evaluate.results.files import print_metrics, remove_partial_files, write_result
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

# Tasks of the whole model; `tokenizer` needs the tokenizer alone.
MODEL_TASKS: dict[str, Callable[[EvaluationContext], TaskResult]] = {
    "retrieval": evaluate_retrieval,
    "zero-shot": evaluate_zero_shot,
    "reports": evaluate_reports,
    "synthesis": evaluate_synthesis,
    "finetune": evaluate_finetune,
}
TASKS = ("tokenizer", *MODEL_TASKS)
WITH_REPORTS = ("retrieval", "reports", "synthesis", "all")
"""Tasks whose metrics depend on the sections that make up a report."""

DESCRIPTION = (
    "Evaluate a model or a tokenizer by one TASK or by all of them, evaluate the outputs of another system "
    "(external-…), or compare two results. Subsets of published protocols: medunifier subset."
)


@dataclass(frozen=True)
class EvaluateConfig(EvaluationOptions):
    """Evaluate a model or a tokenizer on a shard folder."""

    model: str
    """Model folder; the task tokenizer also accepts the folder of a frozen tokenizer."""
    data: str
    """Shard folder: image shards for any task, or token shards for retrieval, zero-shot, reports and finetune."""
    out: str
    """Result file, NAME.json; the page NAME.html and the folder NAME-pictures are written beside it."""
    ids: str | None = None
    """File with the study ids to evaluate, from `medunifier subset` or one id per line; --limit is ignored."""
    sections: str | None = None
    """Sections that make up a report; default: those of the data. Required if the model was trained on others."""
    tokenizer_limit: int = 0
    """Number of studies for the task tokenizer; 0 = all, since codebook usage grows with the number."""
    perceptual: PerceptualConfig = field(default_factory=lambda: PerceptualConfig("none"))
    """Network of the tokenizer's LPIPS or radiograph-feature distance; default: none."""
    bootstrap: int = 200
    """Bootstrap resamples of the patients for an interval."""

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
    "tokenizer": Subcommand(EvaluateConfig, "reconstruction: PSNR, SSIM, codebook usage, findings preserved"),
    "retrieval": Subcommand(EvaluateConfig, "image-text retrieval and matching: recall and precision at k, AUROC"),
    "zero-shot": Subcommand(EvaluateConfig, "zero-shot classification by prompts: AUROC, F1, accuracy"),
    "reports": Subcommand(EvaluateConfig, "report generation: BLEU, ROUGE-L, CIDEr, clinical F1"),
    "synthesis": Subcommand(EvaluateConfig, "image generation: label AUROC, FID, KID, precision, recall, copies"),
    "finetune": Subcommand(
        EvaluateConfig, "linear probe, fine-tuning and segmentation with a percentage of the labels"
    ),
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
        try:
            print_metrics(evaluate(task, config, tokenizer, pipeline, command), config.out)
        except KeyboardInterrupt:  # unlike most commands it keeps nothing of what it has computed
            raise KeyboardInterrupt(
                f"interrupted; {config.out} was not written, and the command starts anew"
            ) from None


def load_model(folder: str, task: str, device: str | None) -> tuple[FrozenTokenizer, Pipeline | None]:
    """Load the tokenizer, and the model if the folder holds one.

    Raises:
        UserError: if the folder holds neither, or holds a tokenizer alone and the task needs a model.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"model folder {folder} not found")
    if (path / CODEBOOK).is_file():
        if task != "tokenizer":
            raise UserError(f"{folder} is a frozen tokenizer: the task {task} needs a model folder (runs/…/model)")
        return FrozenTokenizer.from_pretrained(path), None
    from medunifier.stage2_unified.inference.pipeline import (
        MedUnifierPipeline,  # imports transformers, which --help must not wait for
    )

    pipeline = MedUnifierPipeline.from_pretrained(path, device)
    return pipeline.tokenizer, pipeline


def evaluate(
    task: str, config: EvaluateConfig, tokenizer: FrozenTokenizer, pipeline: Pipeline | None, command: str
) -> dict[str, Any]:
    """Run one task, or with ``all`` every task that the data allow, and write the JSON, the images and the page.

    Returns:
        Content of the JSON.

    Raises:
        UserError: if the task cannot be evaluated on the data; with ``all``, if none can.
    """
    remove_partial_files(Path(config.out))
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
            results[name] = _run_task(name, config, data, tokenizer, pipeline, single=task != "all")
        except UserError as error:
            if task != "all":
                raise
            skipped[name] = str(error)
            print(f"{name} skipped: {error}", file=sys.stderr)
        seconds[name] = time.perf_counter() - start
    if not results:
        raise UserError(f"no task can be evaluated on {config.data}: {next(iter(skipped.values()))}")
    evaluated = {name: result.studies for name, result in results.items() if result.studies is not None}
    return write_result(
        config.out,
        task=task,
        results=results,
        data=data.describe(config.split, evaluated),
        model={"tokenizer": tokenizer.fingerprint}
        | (
            {"model": pipeline.fingerprint, "sections": pipeline.sections, **_conditioning(pipeline)}
            if pipeline
            else {}
        ),
        command=command,
        seed=config.seed,
        bootstrap=config.bootstrap,
        skipped=skipped,
        seconds=seconds,
        notes=notes,
    )


def read_ids(path: str) -> set[str]:
    """Read study ids from a file of ``medunifier subset``, or from a text file with one id per line.

    Raises:
        UserError: if the file is missing or holds no ids.
    """
    if path.endswith(".json"):
        content = read_json(path, "a published subset")
        ids = content.get("ids") if isinstance(content, dict) else None
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise UserError(f'{path} has no "ids": pass a file written by `medunifier subset`')
    else:
        try:
            text = decode_text(read_bounded(path, MAX_JSON_BYTES))
            ids = [line.strip() for line in text_lines(text) if line.strip()]
        except (OSError, ValueError) as error:
            raise UserError(f"the id file {path} cannot be read: {error}") from None
    if not ids:
        raise UserError(f"{path} holds no ids")
    return set(ids)


def _check_sections(task: str, config: EvaluateConfig, data: EvaluationData, pipeline: Pipeline) -> list[str]:
    """Reject reference sections that the model was not trained on, unless ``--sections`` requests them.

    A model trained on findings and evaluated on findings and impression loses points in every text metric for
    sections that it never learned to write, and its text embeddings ignore what distinguishes two reports. Such
    values look like those of a poor model. With ``--sections`` the mismatch is recorded as a note.

    Returns:
        Notes for the result.
    """
    if data.sections == pipeline.sections or task not in WITH_REPORTS:
        return []
    if config.sections is None:
        raise UserError(
            f"the model was trained on {pipeline.sections}, but the reports of {config.data} are {data.sections}: "
            f"pass --sections {pipeline.sections} to evaluate the sections that it was trained on, or --sections "
            f"{data.sections} to evaluate these anyway"
        )
    return [f"The model was trained on {pipeline.sections} but evaluated on {data.sections} (--sections)."]


def _run_task(
    name: str,
    config: EvaluateConfig,
    data: EvaluationData,
    tokenizer: FrozenTokenizer,
    pipeline: Pipeline | None,
    single: bool,
) -> TaskResult:
    if name == "tokenizer":
        context = TokenizerEvaluation(**{f.name: getattr(config, f.name) for f in fields(TokenizerEvaluation)})
        if not single:  # synthesis trains the classifier and applies it to reconstructions as well
            context = replace(context, classifier_steps=0)
        return evaluate_tokenizer_task(tokenizer, data, context)
    assert pipeline is not None  # noqa: S101 - narrows a type
    options = {f.name: getattr(config, f.name) for f in fields(EvaluationOptions)}
    return MODEL_TASKS[name](EvaluationContext(pipeline, data, **options, **_conditioning(pipeline)))


def _conditioning(pipeline: Pipeline) -> dict[str, Any]:
    """Return ``max_views`` and ``prior`` of the model where they differ from one image and no prior study."""
    inputs = {"max_views": getattr(pipeline, "max_views", 1), "prior": getattr(pipeline, "prior", False)}
    return {name: value for name, value in inputs.items() if value not in (1, False)}
