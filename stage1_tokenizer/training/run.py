"""Training of the tokenizer: data, model and loop from the configuration, then the export."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from medunifier.data.shards.dataset import Sample, ShardDataset
from medunifier.data.shards.loader import training_stream
from medunifier.shared.errors import UserError
from medunifier.shared.training.checkpoints import check_global_batch
from medunifier.shared.training.config import MAY_CHANGE
from medunifier.shared.training.distributed import barrier, is_main, on_cpu, warn_if_alone
from medunifier.shared.training.loop import train, use_threads
from medunifier.shared.training.memory import warn_if_too_large
from medunifier.shared.training.run_folder import RunFolder, export_once, read_metrics
from medunifier.stage1_tokenizer.config import Stage1Config
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.pixel_range import collate_images
from medunifier.stage1_tokenizer.training.size import tokenizer_size
from medunifier.stage1_tokenizer.training.studies import collate_studies, label_balance
from medunifier.stage1_tokenizer.training.task import TokenizerTask

TOKENIZER = "tokenizer"


def train_tokenizer(config: Stage1Config) -> None:
    """Train or resume the configured run, then export its tokenizer.

    Raises:
        UserError: for errors that the user can fix: missing shards, a run folder of another configuration, a full
            disk, a non-finite loss.
    """
    loop = config.loop
    accelerator = Accelerator(
        cpu=on_cpu(), mixed_precision=loop.mixed_precision, gradient_accumulation_steps=loop.accumulation
    )
    warn_if_alone()
    use_threads(loop.threads)
    set_seed(loop.seed)
    if is_main() and not config.gradient_checkpointing:
        warn_if_too_large(tokenizer_size("tokenizer", config.model, loop), loop)
    training = ShardDataset(config.data.shards, "train")
    validation = _validation(config.data.shards, training)
    check_global_batch(config.run_dir, loop)
    run = RunFolder(
        config.run_dir,
        config,
        # The teacher's checksum identifies it.
        MAY_CHANGE
        + ("data.shards", "data.pictures", "gradient_checkpointing", "compile", "loss.semantic.teacher.path"),
    )
    semantic, size = config.loss.semantic, config.model.resolution
    balance = label_balance(training, semantic, loop.seed) if semantic.labels else None
    task = TokenizerTask(config, accelerator, run, validation, balance)
    collate: Callable[[Sequence[tuple[int, Sample]]], Any] = partial(collate_images, size=size, seed=loop.seed)
    if semantic:
        collate = partial(collate_studies, size=size, seed=loop.seed, config=semantic)
    train(task, accelerator, run, training_stream(training, collate, loop), loop)
    if is_main():
        _export(task, run)
    barrier()
    accelerator.end_training()


def _validation(shards: str, training: ShardDataset) -> ShardDataset:
    """Return the validation split, or the training split with a warning if there is none."""
    try:
        return ShardDataset(shards, "validate")
    except UserError as error:
        if is_main():
            print(f"warning: {error}; validation metrics of this run are computed on its training images", flush=True)
        return training


def _export(task: TokenizerTask, run: RunFolder) -> None:
    """Export to ``tokenizer/``, with the metrics of the last validation in its model card."""
    path = run.path / TOKENIZER
    last = [line for line in read_metrics(run.path) if "validation/psnr" in line][-1]
    figures = [f"- {name.removeprefix('validation/')}: {value:.4g}" for name, value in last.items() if name != "step"]
    card = f"\n## Validation after {last['step']} steps\n\n" + "\n".join(figures) + "\n"
    frozen = FrozenTokenizer(task.average.module)
    export_once(
        path,
        frozen.fingerprint,
        lambda: FrozenTokenizer.from_pretrained(path).fingerprint,
        lambda: frozen.save(path, card),
    )
