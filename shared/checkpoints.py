"""Checkpoints that are complete or absent: ``checkpoints/step-N/``, the newest *k* kept."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from shared.artifacts import PARTIAL_PREFIX, remove_partial
from shared.distributed import barrier, broadcast_object, is_main
from shared.errors import UserError


class Checkpoints:
    """The ``checkpoints/`` folder of a run.

    Args:
        folder: where they lie; made when the first is saved.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.folder / f"step-{step}"

    def latest(self) -> int | None:
        """Newest complete step as the first process sees it, on all processes."""
        steps = self.steps()
        step: int | None = broadcast_object(steps[-1] if steps else None)
        return step

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Let every process ``write`` into one hidden folder, then show it under its name and drop the oldest.

        Raises:
            UserError: if the disk is full; the checkpoints before it are untouched.
        """
        partial = self.folder / f"{PARTIAL_PREFIX}step-{step}"
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_partial(self.folder)
            partial.mkdir()
        barrier()
        try:
            write(partial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as a RuntimeError
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"cannot write the checkpoint of step {step} under {self.folder}: {error}; "
                "older checkpoints are whole, and the same command continues from them"
            ) from error
        barrier()
        if is_main():
            final = self.path(step)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(partial, final)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.path(old))
        barrier()
