"""Train the unified model: ``accelerate launch stage2_unified/train.py --config configs/stage2/NAME.yaml …``.

``medunifier train stage2`` does the same by the name of a preset.

Nothing heavy is imported before the configuration is read: errors in it, ``--help`` and an interrupt are answered at
once.
"""

import sys
from collections.abc import Sequence

from medunifier.shared.command import announce, run_training


def main(argv: Sequence[str] | None = None) -> None:
    """Train or resume the configured run, then export its model.

    Raises:
        UserError: for errors that the user can fix: missing shards, tokens of another tokenizer, no text in the
            data, a full disk, a non-finite loss.
    """
    from medunifier.shared.config import parse_config
    from medunifier.stage2_unified.training.config import Stage2Config

    config = parse_config(Stage2Config, argv, prog="stage2_unified/train.py", presets="stage2")
    announce("loading …")
    from medunifier.stage2_unified.training.run import train_unified

    train_unified(config)


if __name__ == "__main__":
    run_training(main, sys.argv[1:])
