"""Train the tokenizer: ``accelerate launch stage1_tokenizer/train.py --config configs/stage1/NAME.yaml …``.

``medunifier train stage1`` does the same by the name of a preset.

Nothing heavy is imported before the configuration is read: errors in it, ``--help`` and an interrupt are answered at
once.
"""

import sys
from collections.abc import Sequence

from medunifier.shared.command import announce, run_training


def main(argv: Sequence[str] | None = None) -> None:
    """Train or resume the configured run, then export its tokenizer.

    Raises:
        UserError: for errors that the user can fix: missing shards, a run folder of another configuration, a full
            disk, a non-finite loss.
    """
    from medunifier.shared.config import parse_config
    from medunifier.stage1_tokenizer.config import Stage1Config

    config = parse_config(Stage1Config, argv, prog="stage1_tokenizer/train.py", presets="stage1")
    announce("loading …")
    from medunifier.stage1_tokenizer.training.run import train_tokenizer

    train_tokenizer(config)


if __name__ == "__main__":
    run_training(main, sys.argv[1:])
