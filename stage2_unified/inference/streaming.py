"""Stream a report while it is generated."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from medunifier.stage2_unified.generation.reports import generate_reports
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.report_codec import ReportCodec
from medunifier.stage2_unified.model.sequences import ImageSpans


class _Ids(BaseStreamer, StoppingCriteria):
    """Pass ids from the thread of ``generate()`` to the consumer's, and the consumer's stop signal back."""

    def __init__(self) -> None:
        self.queue: queue.Queue[list[int] | BaseException | None] = queue.Queue()
        self.stopped = False
        self._prompt_passed = False

    def put(self, value: Tensor) -> None:
        """Queue the ids of a step; the first call passes the prompt."""
        if self._prompt_passed:
            self.queue.put(value.flatten().tolist())
        self._prompt_passed = True

    def end(self) -> None:
        """Do nothing: the thread itself queues the end, after an error too."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """Return whether to stop, (B,) bool."""
        return torch.full((len(input_ids),), self.stopped, dtype=torch.bool, device=input_ids.device)


def stream_report(
    model: MedUnifierForConditionalGeneration, codec: ReportCodec, images: ImageSpans, **generate: Any
) -> Iterator[dict[str, str]]:
    """Yield the greedy report of one study after each token, as its sections so far; the last one is complete.

    Generation ends when the consumer closes the iterator.

    Args:
        model: in eval mode.
        codec: the report codec of the model's processor.
        images: the images of one study.
        generate: arguments of ``transformers``' ``generate()``, without beams.
    """
    ids = _Ids()

    def run() -> None:
        end: BaseException | None = None
        try:
            criteria = StoppingCriteriaList([ids])
            generate_reports(model, codec, images, streamer=ids, stopping_criteria=criteria, **generate)
        except BaseException as error:  # raised again in the consumer's thread
            end = error
        ids.queue.put(end)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    generated: list[int] = []
    try:
        while (step := ids.queue.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            generated += step
            yield codec.decode(generated)
    finally:
        ids.stopped = True
        thread.join()
