"""The run folder: configuration, metrics, pictures and checkpoints of a training.

``config.yaml``, ``metrics.jsonl`` (one line per log step), TensorBoard events, ``pictures/``, ``checkpoints/``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from medunifier.shared.artifacts import atomic_file, remove_partial
from medunifier.shared.config import (
    config_differences,
    config_to_dict,
    load_saved_config,
    save_config,
    with_later_options,
)
from medunifier.shared.errors import UserError
from medunifier.shared.training.distributed import barrier, is_main

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG, METRICS, PICTURES, CHECKPOINTS = "config.yaml", "metrics.jsonl", "pictures", "checkpoints"


class RunFolder:
    """Open or continue a run; only the first process writes.

    Args:
        path: the folder.
        config: the resolved configuration, a dataclass.
        may_change: dotted keys that a resumed run may change (length, logging).

    Raises:
        UserError: if the folder holds another run (the differing keys are named) or cannot be written.
    """

    def __init__(self, path: str | Path, config: Any, may_change: tuple[str, ...] = ()) -> None:
        self.path = Path(path)
        self._writer: SummaryWriter | None = None
        if is_main():
            self._open(config, may_change)
        barrier()

    def _open(self, config: Any, may_change: tuple[str, ...]) -> None:
        saved = self.path / CONFIG
        if saved.is_file():
            current = config_to_dict(config)
            differences = [
                line
                for line in config_differences(with_later_options(load_saved_config(saved), config), current)
                if line.split(":")[0] not in may_change
            ]
            unknown = [line.split(":")[0] for line in differences if not _has_option(current, line.split(":")[0])]
            if unknown:
                raise UserError(
                    f"{saved} was written by an older version of medunifier (unknown options: {', '.join(unknown)}): "
                    "give another --run_dir, or continue the run with that version"
                )
            if differences:
                raise UserError(
                    f"{self.path} holds a run with another configuration ({'; '.join(differences)}): "
                    "pass another --run_dir, or the same options to continue it"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run: pass another --run_dir")
        try:
            (self.path / PICTURES).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the run folder {self.path}: {error.strerror}") from error
        for folder in (self.path, self.path / PICTURES, self.path / CHECKPOINTS):
            remove_partial(folder)
        save_config(config, saved)

    def rewind(self, step: int) -> None:
        """Drop log lines after ``step``, which the resumed run writes again."""
        if not is_main():
            return
        metrics = self.path / METRICS
        if metrics.is_file():
            kept = [line for line in read_metrics(self.path) if line["step"] <= step]
            with atomic_file(metrics) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._writer = self._open_writer(purge_step=step + 1)

    def _open_writer(self, purge_step: int | None = None) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter  # lazy: reading a run does not need it

        return SummaryWriter(str(self.path / "tensorboard"), purge_step=purge_step)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Append one line to ``metrics.jsonl`` and the same metrics to TensorBoard."""
        if not is_main():
            return
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        if self._writer is None:
            self._writer = self._open_writer()
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Save an (H, W) or (H, W, 3) uint8 picture as ``pictures/{name}-{step}.png``."""
        if not is_main():
            return
        with atomic_file(self.path / PICTURES / f"{name}-{step:07d}.png") as partial:
            Image.fromarray(image).save(partial, format="PNG")
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HW" if image.ndim == 2 else "HWC")

    def text(self, name: str, step: int, text: str) -> None:
        """Save a text as ``pictures/{name}-{step}.txt``."""
        if not is_main():
            return
        with atomic_file(self.path / PICTURES / f"{name}-{step:07d}.txt") as partial:
            partial.write_text(text, encoding="utf-8")
        if self._writer is not None:
            self._writer.add_text(name, text, step)

    def close(self) -> None:
        """Flush and close the TensorBoard writer."""
        if self._writer is not None:
            self._writer.close()


def _has_option(config: dict[str, Any], key: str) -> bool:
    """Return whether a configuration has the option with a dotted key."""
    value: Any = config
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def export_once(folder: Path, own: str, found: Callable[[], str], write: Callable[[], object]) -> None:
    """Export the result of a finished run unless the folder holds the same weights already; print which.

    The existence of the folder proves nothing: the run may have been continued since the last export.

    Args:
        folder: of the artifact.
        own: fingerprint of the trained weights.
        found: returns the fingerprint of the folder; a :class:`UserError` means that it holds no valid artifact.
        write: writes the folder.
    """
    try:
        done = found() == own
    except UserError:
        done = False
    if not done:
        write()
    print(f"{folder} {'is done already' if done else 'written'} (fingerprint {own[:12]})", flush=True)


def read_metrics(run: str | Path) -> list[dict[str, float]]:
    """Return the lines of ``metrics.jsonl``, without a truncated last one.

    Raises:
        UserError: if ``run`` has none.
    """
    path = Path(run) / METRICS
    if not path.is_file():
        raise UserError(f"{path} not found: {run} is not a run folder with a started training")
    lines: list[dict[str, float]] = []
    for text in path.read_text(encoding="utf-8").split("\n"):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
