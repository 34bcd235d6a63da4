"""Train the tokenizer: ``accelerate launch stage1_tokenizer/train.py --config configs/stage1/NAME.yaml …``."""

import os
import sys

# A script's own folder comes first among the places of imports, and this one holds tokenize.py, which would
# hide the standard library's module of that name. The project's root takes its place.
if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from collections.abc import Sequence
from functools import partial

from accelerate import Accelerator
from accelerate.utils import set_seed

from data.loader import training_stream
from data.shards import ShardDataset
from shared.command import run_command
from shared.config import parse_config
from shared.distributed import barrier, is_main, on_cpu, warn_if_alone
from shared.errors import UserError
from shared.loop import check_global_batch, train, use_threads
from shared.loop_config import MAY_CHANGE
from shared.run_folder import RunFolder, export_once, read_metrics
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.frozen import FrozenTokenizer
from stage1_tokenizer.images import draw_images
from stage1_tokenizer.task import TokenizerTask

TOKENIZER = "tokenizer"


def main(argv: Sequence[str] | None = None) -> None:
    """Train (or continue) the run that the arguments describe and export its tokenizer.

    Raises:
        UserError: for what the user can mend: absent shards, another run's folder, a full disk, a loss that is
            not finite.
    """
    config = parse_config(Stage1Config, argv, prog="stage1_tokenizer/train.py")
    loop = config.loop
    accelerator = Accelerator(
        cpu=on_cpu(), mixed_precision=loop.mixed_precision, gradient_accumulation_steps=loop.accumulation
    )
    warn_if_alone()
    use_threads(loop.threads)
    set_seed(loop.seed)
    training = ShardDataset(config.data.shards, "train")
    validation = _validation(config.data.shards, training)
    check_global_batch(config.run_dir, loop)
    run = RunFolder(config.run_dir, config, MAY_CHANGE + ("data.shards", "data.pictures", "recompute_activations"))
    task = TokenizerTask(config, accelerator, run, validation)
    collate = partial(draw_images, size=config.model.resolution, seed=loop.seed)
    train(task, accelerator, run, training_stream(training, collate, loop), loop)
    if is_main():
        _export(task, run)
    barrier()
    accelerator.end_training()


def _validation(shards: str, training: ShardDataset) -> ShardDataset:
    """The validation split; of an archive too small to have one, the training images, and a word about it."""
    try:
        return ShardDataset(shards, "validate")
    except UserError as error:
        if is_main():
            print(f"warning: {error}; validation figures of this run are of its training images", flush=True)
        return training


def _export(task: TokenizerTask, run: RunFolder) -> None:
    """Write ``tokenizer/``, with the figures of the last validation on its card."""
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


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
