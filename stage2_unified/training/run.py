"""Training of the unified model: data, model and loop from the configuration, then the export."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed

from medunifier.data.shards.dataset import ShardDataset
from medunifier.data.shards.loader import training_stream
from medunifier.shared.errors import UsageError, UserError
from medunifier.shared.training.checkpoints import check_global_batch
from medunifier.shared.training.config import MAY_CHANGE
from medunifier.shared.training.distributed import barrier, is_main, on_cpu, warn_if_alone, world_size
from medunifier.shared.training.loop import train, use_threads
from medunifier.shared.training.memory import warn_if_too_large
from medunifier.shared.training.run_folder import RunFolder, export_once
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage2_unified.generation.likelihood import LikelihoodReference
from medunifier.stage2_unified.model.backbones import merge_adapters
from medunifier.stage2_unified.model.memory import unified_size
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import MedUnifierProcessor
from medunifier.stage2_unified.model.processing.report_codec import sections_of
from medunifier.stage2_unified.training.build import (
    build_model,
    build_objectives,
    export_model,
    make_optimizers,
    model_config,
    run_text_tokenizer,
)
from medunifier.stage2_unified.training.collator import MEASURED_REPORTS, StudyCollator, report_buckets
from medunifier.stage2_unified.training.config import Stage2Config
from medunifier.stage2_unified.training.dataset import StudiesWithText, check_fingerprint, positive_findings
from medunifier.stage2_unified.training.fsdp import checkpoint_whole, shard, take_over_fsdp, whole_model
from medunifier.stage2_unified.training.task import UnifiedTask

MODEL = "model"


def train_unified(config: Stage2Config) -> None:
    """Train, or continue, the run that the arguments describe and export its model.

    Raises:
        UserError: for what the user can correct: tokens of another tokenizer, no text in the data, a full disk.
    """
    loop = config.loop
    sharded = take_over_fsdp()
    if sharded and config.lora.rank:
        raise UsageError("lora.rank: adapters are not sharded; use configs/accelerate/ddp.yaml")
    accelerator = Accelerator(
        cpu=on_cpu(), mixed_precision=loop.mixed_precision, gradient_accumulation_steps=loop.accumulation
    )
    warn_if_alone()
    if loop.global_batch() < 2:
        raise UsageError("loop.batch_size: the contrast needs at least 2 studies in the global batch, got 1")
    use_threads(loop.threads)
    set_seed(loop.seed)
    tokenizer = FrozenTokenizer.from_pretrained(config.tokenizer)
    shards = ShardDataset(config.data.shards, "train")
    check_fingerprint(shards.manifest, tokenizer, config.data.shards)
    text_choice = shards.manifest.get("transform", {}).get("text", "findings+impression")
    training = StudiesWithText(shards, sections_of(text_choice), config.data.prior, bool(config.data.statements))
    if config.data.prior and not training.follow_ups:
        raise UserError(
            f"data.prior: no study of {config.data.shards} has a prior study: each patient has one study, or the "
            "shards lack their order (an older ingest, a source without dates); ingest again into another folder, or "
            "leave data.prior out"
        )
    validation = _validation(config, sections_of(text_choice))
    check_global_batch(config.run_dir, loop)
    run = RunFolder(
        config.run_dir, config, (*MAY_CHANGE, "data.shards", "tokenizer", "gradient_checkpointing", "compile")
    )

    text_tokenizer = run_text_tokenizer(config, run, training)
    if is_main() and not (sharded or config.gradient_checkpointing or config.model.pretrained):
        configured = model_config(config, text_tokenizer, tokenizer, text_choice)
        warn_if_too_large(unified_size("model", configured, loop, averaged=bool(config.ema_decay)), loop)
    model = build_model(config, text_tokenizer, tokenizer, text_choice)
    processor = MedUnifierProcessor(text_tokenizer, tokenizer.to(accelerator.device), model.config)
    if is_main():
        limit = config.data.max_report_tokens
        follow_ups = f" {training.follow_ups} have a prior study," if config.data.prior else ""
        without = f" {training.without_text} have labels alone," if training.without_text else ""
        truncated = sum(len(processor.codec.encode(report)) == limit for report in training.reports())
        print(
            f"{len(training) - training.without_text} of {len(shards)} training studies have text ({truncated} "
            f"reports reach {limit} ids and are truncated),{without}{follow_ups} "
            f"{model.num_parameters() / 1e6:.1f} M parameters",
            flush=True,
        )
    objectives = build_objectives(model, config, accelerator.device)
    if sharded:
        shard(objectives.to(accelerator.device), bf16=loop.mixed_precision == "bf16")
        unprepared = make_optimizers(model, config.optim)
        checkpoint_whole(accelerator, model, unprepared)
        optimizers = [AcceleratedOptimizer(optimizer) for optimizer in unprepared]
    else:
        objectives, *optimizers = accelerator.prepare(objectives, *make_optimizers(model, config.optim))
    data = config.data
    lengths = [len(processor.codec.encode(report)) for report in training.reports(limit=MEASURED_REPORTS)]
    if not lengths:  # statements take the place of the reports
        lengths = [min(data.statement_tokens, data.max_report_tokens)]
    buckets = report_buckets(lengths, loop.batch_size, data.max_report_tokens)
    task = UnifiedTask(
        objectives, optimizers, accelerator, config, run, validation, processor, tokenizer, sharded, buckets
    )
    collate = StudyCollator(
        processor.codec,
        text_dropout=data.text_dropout,
        seed=loop.seed,
        training=True,
        section_dropout=data.section_dropout,
        max_views=data.max_views,
        view_dropout=data.view_dropout,
        buckets=buckets,
        prior=data.prior,
        statements=data.statements,
        statement_tokens=data.statement_tokens,
    )
    train(task, accelerator, run, training_stream(training, collate, loop), loop)
    with task.averaged_weights():
        trained = whole_model(model) if sharded else model
        if is_main():
            merge_adapters(trained)
            source = shards.manifest.get("source", "unknown")
            _export(trained, processor, run.path / MODEL, config, source, positive_findings(shards))
    barrier()
    accelerator.end_training()


def _export(
    model: MedUnifierForConditionalGeneration,
    processor: MedUnifierProcessor,
    folder: Path,
    config: Stage2Config,
    source: str,
    findings: Sequence[str],
) -> None:
    """Write the model folder and the likelihood of the validation images in it, or print why not."""
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline, model_fingerprint

    export_once(
        folder,
        fingerprint := model_fingerprint(model),
        lambda: MedUnifierPipeline.from_pretrained(folder, "cpu").fingerprint,
        lambda: export_model(model, processor, folder, config, source, findings),
    )
    if LikelihoodReference.load(folder, fingerprint) is not None:
        return
    # With the weights in memory: to load the folder again costs the time and the memory of a second model. Not
    # compiled: the lengths of these sequences are others than the training's.
    pipeline = MedUnifierPipeline(model, processor, processor.image_tokenizer.codebook.device)
    try:
        with torch.compiler.set_stance("force_eager"):
            reference = pipeline.measure_likelihood(config.data.shards, "validate")
    except UserError as error:
        print(f"images outside the training data will not be recognized: {error}", flush=True)
        return
    reference.save(folder)
    print(reference.summary(folder), flush=True)


def _validation(config: Stage2Config, sections: tuple[str, ...]) -> StudiesWithText | None:
    """Return the validation studies with text; None, with a message, if they are too few to contrast."""
    validation: StudiesWithText | None = None
    try:
        validation = StudiesWithText(
            ShardDataset(config.data.shards, "validate"), sections, config.data.prior, bool(config.data.statements)
        )
        reason = f"only {len(validation)} validation studies with text"
    except UserError as error:
        reason = str(error)
    if validation is None or len(validation) < 2 * world_size():
        if is_main():
            print(f"no validation: {reason}", flush=True)
        return None
    return validation
