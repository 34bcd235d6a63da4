"""A report while it is being written."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from stage2_unified.inference import MedUnifierPipeline


class _Ids(BaseStreamer, StoppingCriteria):
    """Carries ids from generate()'s thread to the reader's, and the reader's wish to stop back."""

    def __init__(self) -> None:
        self.queue: queue.Queue[list[int] | BaseException | None] = queue.Queue()
        self.stopped = False
        self._prompt_passed = False

    def put(self, value: Tensor) -> None:
        """Ids of a step; the first call brings the prompt."""
        if self._prompt_passed:
            self.queue.put(value.flatten().tolist())
        self._prompt_passed = True

    def end(self) -> None:
        """Nothing: the thread itself says when it is over, after an error too."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """Whether to stop, a bool a row."""
        return torch.full((len(input_ids),), self.stopped, dtype=torch.bool, device=input_ids.device)


def stream_report(
    pipeline: MedUnifierPipeline, codes: np.ndarray, view: str, **generate: Any
) -> Iterator[dict[str, str]]:
    """The greedy report of one image, its sections anew with every word; the last is the whole.

    Args:
        pipeline: the model.
        codes: (h, w).
        view: ViewPosition.
        generate: as for ``transformers``' ``generate()``, without beams.

    A reader that stops reading stops the writing too.
    """
    inputs = {
        name: value.to(pipeline.device) for name, value in pipeline.processor(codes=codes[None], views=[view]).items()
    }
    ids = _Ids()

    def write() -> None:
        end: BaseException | None = None
        try:
            pipeline.processor.write_reports(
                pipeline.model, inputs["codes"], inputs["view"], streamer=ids,
                stopping_criteria=StoppingCriteriaList([ids]), **generate,
            )  # fmt: skip
        except BaseException as error:  # it belongs to whoever reads
            end = error
        ids.queue.put(end)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    written: list[int] = []
    try:
        while (step := ids.queue.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            written += step
            yield pipeline.processor.codec.decode(written)
    finally:
        ids.stopped = True
        thread.join()
