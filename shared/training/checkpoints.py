"""Atomic checkpoints, from which a run resumes: ``checkpoints/step-N/``, complete or absent, the newest *k* kept."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from medunifier.shared.artifacts import PARTIAL_PREFIX, read_json, remove_partial, unwritable, write_json
from medunifier.shared.errors import UserError
from medunifier.shared.files.weights import check_weight_file
from medunifier.shared.training.config import LoopConfig
from medunifier.shared.training.distributed import barrier, broadcast_object, is_main, world_size
from medunifier.shared.training.run_folder import CHECKPOINTS

if TYPE_CHECKING:
    from accelerate import Accelerator

POSITION = "position.json"


@dataclass(frozen=True)
class DataPosition:
    """Where a training stands in its data, whatever the number of processes.

    Attributes:
        samples: consumed since the beginning, by all processes together.
        global_batch: samples a step over all processes and micro-batches.
    """

    samples: int
    global_batch: int


class Checkpoints:
    """The ``checkpoints/`` folder of a run.

    Args:
        folder: parent of the checkpoints; created with the first one.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int) -> Path:
        """Return the folder of one checkpoint."""
        return self.folder / f"step-{step}"

    def latest(self) -> int | None:
        """Return the newest complete step that the first process finds, on all processes."""
        steps = self.steps()
        step: int | None = broadcast_object(steps[-1] if steps else None)
        return step

    def position(self, step: int) -> DataPosition:
        """Return the position in the data that the checkpoint of ``step`` was saved at.

        Raises:
            UserError: if it holds none: another program wrote it, or a version that did not save positions.
        """
        path = self.path(step) / POSITION
        values = read_json(path, "a checkpoint with a position in the data; give another --run_dir")
        try:
            return DataPosition(int(values["samples"]), int(values["global_batch"]))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} holds no position in the data: give another --run_dir") from None

    def load(self, step: int, read: Callable[[str], None]) -> None:
        """Let every process ``read`` the folder of one checkpoint.

        Raises:
            UserError: if it is damaged, or is the checkpoint of another model or optimizer.
        """
        path = self.path(step)
        for weights in sorted(path.glob("*.safetensors")):
            check_weight_file(weights)
        try:
            read(str(path))
        except UserError:
            raise
        except Exception as error:  # of a damaged file: from safetensors, the unpickler, the zip reader or the model
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(
                f"the checkpoint {path} cannot be loaded: {reason}; if it is damaged, remove this folder to "
                "continue from the one before it, or pass another --run_dir"
            ) from error

    def save(self, step: int, write: Callable[[Path], None], position: DataPosition) -> None:
        """Let every process ``write`` into one hidden folder, rename it, and remove the oldest checkpoints.

        Args:
            step: optimizer steps done.
            write: writes the state of the calling process.
            position: in the data, after ``step``.

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
            if is_main():
                write_json(partial / POSITION, asdict(position))
        # PyTorch reports a full disk as a RuntimeError.
        except (OSError, RuntimeError, SafetensorError, UserError) as error:
            reason = unwritable(error, self.folder)  # before the removal makes room again
            shutil.rmtree(partial, ignore_errors=True)
            remedy = "; free some space or make the folder writable" if reason else ""
            raise UserError(
                f"cannot write the checkpoint of step {step} under {self.folder}: {reason or error}{remedy}. "
                "Older checkpoints are complete, and the same command continues from them"
            ) from error
        barrier()
        if is_main():
            final = self.path(step)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(partial, final)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.path(old))
        barrier()


def resume(checkpoints: Checkpoints, accelerator: "Accelerator") -> tuple[int, int]:
    """Load the newest checkpoint, if there is one, into what the Accelerator prepared.

    Returns:
        The steps done and the samples consumed by all processes; 0, 0 without a checkpoint.
    """
    step = checkpoints.latest()
    if step is None:
        return 0, 0
    samples = checkpoints.position(step).samples
    checkpoints.load(step, accelerator.load_state)
    # Accelerate counts micro-batches, on the processes that were there when it saved. Under another accumulation
    # the count would end an optimizer step in the middle of a global batch, and on a new process at another time.
    accelerator.step = 0
    return step, samples


def check_global_batch(run_dir: str | Path, config: LoopConfig) -> None:
    """Refuse to resume a run with another global batch. Its split over processes and micro-batches may change.

    Raises:
        UserError: naming a batch size and an accumulation that keep the global batch on this number of processes.
    """
    checkpoints = Checkpoints(Path(run_dir) / CHECKPOINTS)
    step = checkpoints.latest()
    if step is None:
        return
    kept, world = checkpoints.position(step).global_batch, world_size()
    if kept == config.global_batch():
        return
    own, rest = divmod(kept, world)
    if rest:
        remedy = f"no batch size keeps it on {world} processes: start a number of processes that divides {kept}"
    else:
        size = max(size for size in range(1, min(own, config.batch_size) + 1) if own % size == 0)
        remedy = f"--loop.batch_size {size} --loop.accumulation {own // size} keeps it"
    raise UserError(
        f"{run_dir} was trained with a global batch of {kept} studies, and {world} processes x loop.batch_size "
        f"{config.batch_size} x loop.accumulation {config.accumulation} make {config.global_batch()}: {remedy}"
    )
