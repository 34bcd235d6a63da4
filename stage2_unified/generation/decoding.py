"""Decode token by token on static buffers: one step that reads nothing from the device and changes no shape.

A step embeds the last id of each sequence, runs the decoder on it, chooses the next id and writes it, its keys and
values and the advanced position into buffers. On a CUDA device it is captured once as a CUDA graph and replayed:
launching its kernels one by one takes 20 times as long as running them. On a CPU it is called.
"""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from medunifier.stage2_unified.model.attention import bidirectional_image_mask, causal_mask
from medunifier.stage2_unified.model.experts import Kind
from medunifier.stage2_unified.model.kv_cache import RecordedKV, StaticKV
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration

COLUMNS = 64
"""The columns of the buffers are a multiple of it, so that prompts of similar lengths use one captured step."""
_BUCKETS = 8
_KEPT = 2  # captured steps per model: one of images and one of reports, with their buffers


class DecodingStep(ABC):
    """Buffers of B sequences, and the step that extends each by one id.

    Each sequence occupies one row or, with guidance, two rows of the decoder's batch. All rows have the same columns:
    prompts are padded on the left.

    Args:
        model: in eval mode.
        batch: B.
        rows: of the decoder's batch, a multiple of B.
        columns: ids of the longest sequence, with its prompt; rounded up to a multiple of :data:`COLUMNS`.

    Attributes:
        ids: (B, columns) generated ids, each in the column of its keys and values.
        token: (B,) the last ids.
        number: (1,) number of the next id, counted from the number that :meth:`begin` gets.
        kind: of the ids, which chooses the expert of a model that has several.
    """

    kind: Kind

    def __init__(self, model: MedUnifierForConditionalGeneration, batch: int, rows: int, columns: int) -> None:
        self.columns = round_up(columns)
        # Attention reads the columns up to the end of the current bucket. Each bucket is captured by itself.
        self._bucket = round_up(math.ceil(self.columns / _BUCKETS))

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=model.device)

        self.ids, self.token, self.number = integers(batch, self.columns), integers(batch), integers(1)
        self._column, self._position = integers(1), integers(rows, 1)  # of ``token``
        self._visible = torch.zeros(rows, 1, 1, self.columns, dtype=torch.bool, device=model.device)
        self._kv: list[tuple[Tensor, Tensor]] = []  # (rows, g, columns, d) keys and values of each layer
        self._filled = 0  # columns, as the host counts them
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._captures = captures(model)

    @abstractmethod
    def embed(self, model: MedUnifierForConditionalGeneration) -> Tensor:
        """Return the embeddings (rows, 1, H) of ``token``."""

    @abstractmethod
    def choose(self, model: MedUnifierForConditionalGeneration, hidden: Tensor) -> Tensor:
        """(rows, H) hidden states -> (B,) next ids."""

    def state(self) -> list[Tensor]:
        """Return the buffers that a step changes, without keys and values."""
        return [self.ids, self.token, self.number, self._column, self._position, self._visible]

    def begin(
        self,
        model: MedUnifierForConditionalGeneration,
        ids: Tensor,
        visible: Tensor,
        positions: Tensor,
        number: int = 0,
    ) -> None:
        """Encode the prompts in one pass and choose the first ids.

        Args:
            model: as in the constructor.
            ids: (rows, W) prompts, padded on the left.
            visible: (rows, W) bool, False on padding.
            positions: (rows, W).
            number: of the first id.
        """
        width = ids.shape[1]
        mask = None
        if model.config.bidirectional_images:
            mask = bidirectional_image_mask(ids, model.vocabulary, visible)
        if mask is None:
            mask = causal_mask(visible, width, 0, ids.device)
        recorded = [RecordedKV() for _ in model.model.layers]
        # A prompt is encoded once, often in a length of its own: not worth compiling.
        with torch.compiler.set_stance("force_eager"):
            hidden = model.run_decoder(model.embed_ids(ids), mask, positions, recorded, model.route_prompt(ids))
        for number_of_layer, layer in enumerate(recorded):
            assert layer.keys is not None and layer.values is not None  # noqa: S101 - narrows a type
            if number_of_layer == len(self._kv):
                self._kv.append((self._buffer(layer.keys), self._buffer(layer.values)))
            for buffer, of_prompt in zip(self._kv[number_of_layer], (layer.keys, layer.values), strict=True):
                buffer[:, :, :width] = of_prompt
                # A hidden column that is not a number would spoil the sum over the columns.
                buffer[:, :, width:] = 0
        self.number.fill_(number)
        self._visible.zero_()
        self._visible[..., :width] = visible[:, None, None]
        self._column.fill_(width - 1)
        self._position.copy_(positions[:, -1:])
        self._filled = width
        self._write(self.choose(model, hidden[:, -1]))

    def advance(self, model: MedUnifierForConditionalGeneration, steps: int) -> None:
        """Extend the sequences by further ids, without waiting for the device."""
        for _ in range(steps):
            end = min(math.ceil((self._filled + 1) / self._bucket) * self._bucket, self.columns)
            self._replay(model, end) if self._captures else self._step(model, end)
            self._filled += 1

    def _replay(self, model: MedUnifierForConditionalGeneration, end: int) -> None:
        if end not in self._graphs:
            self._graphs[end] = self._capture(model, end)
        self._graphs[end].replay()

    def _buffer(self, like: Tensor) -> Tensor:
        rows, heads, _, dim = like.shape
        # One column more than is used: all columns would be contiguous, the first ones are not, and the compiler
        # makes a graph for either.
        return like.new_zeros(rows, heads, self.columns + 1, dim)

    def _step(self, model: MedUnifierForConditionalGeneration, end: int) -> None:
        """Extend each sequence by one id; its columns must be fewer than ``end``."""
        self._visible.index_fill_(3, self._column, True)
        embedded = self.embed(model)
        visible = self._visible[..., :end]
        mask = torch.zeros_like(visible, dtype=embedded.dtype).masked_fill(~visible, -torch.inf)
        kv = [StaticKV(keys, values, self._column, end) for keys, values in self._kv]
        hidden = model.run_decoder(embedded, mask, self._position, kv, model.route_all(self.kind))
        self._write(self.choose(model, hidden[:, -1]))

    def _write(self, token: Tensor) -> None:
        self.token.copy_(token)
        for counter in (self._column, self._position, self.number):
            counter.add_(1)
        self.ids.index_copy_(1, self._column, token[:, None])

    def _capture(self, model: MedUnifierForConditionalGeneration, end: int) -> torch.cuda.CUDAGraph:
        """Capture a step, which does not run it."""
        state = self.state()
        saved = [buffer.clone() for buffer in state]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # First steps load kernels and compile, which a capture cannot. Their keys and values lie in the column
            # that the next step writes.
            for _ in range(2):
                self._step(model, end)
                for buffer, value in zip(state, saved, strict=True):
                    buffer.copy_(value)
            # Other threads may use the device meanwhile.
            graph.capture_begin(self._pool(), capture_error_mode="thread_local")
            try:
                self._step(model, end)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph

    def _pool(self) -> Any:
        """Return the memory pool of the graphs so far, None for the first: they never run at the same time."""
        return next((graph.pool() for graph in self._graphs.values()), None)


def compile_step(model: MedUnifierForConditionalGeneration) -> None:
    """Compile the decoder layers of a model that only generates.

    A step is then half as long. The compiler takes some seconds for the first step, and again for the second bucket
    and the second batch size, after which all layers, buckets and batch sizes share a graph
    (``model.compile_layers()``, for training, makes a graph for each shape).
    """
    model.compile_layers(any_shape=True)


def captures(model: MedUnifierForConditionalGeneration) -> bool:
    """Return whether steps of a model are captured: on CUDA, unless its layers gather their weights in each pass."""
    return model.device.type == "cuda" and not any(isinstance(weight, DTensor) for weight in model.parameters())


def round_up(columns: int) -> int:
    """Return the next multiple of :data:`COLUMNS`."""
    return math.ceil(columns / COLUMNS) * COLUMNS


Step = TypeVar("Step", bound=DecodingStep)
_KEPT_STEPS: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, DecodingStep]] = WeakKeyDictionary()


@contextmanager
def decoding_step(
    model: MedUnifierForConditionalGeneration, key: Hashable, make: Callable[[], Step]
) -> Iterator[Step]:
    """Yield a step that no other thread uses: a captured one of an earlier call with the same key, or a new one.

    The steps that were used last are kept with the model, on CUDA devices. Weights may change in place between calls.

    Args:
        model: of the step.
        key: what ``make`` depends on.
        make: returns a new step.
    """
    # A graph reads its weights where they were when it was captured, and runs the layers as they were then.
    keep = captures(model)
    addresses = tuple(parameter.data_ptr() for parameter in model.parameters()) if keep else ()
    kept_key = key, addresses, "forward" in vars(model.model.layers[0])
    kept = _KEPT_STEPS.setdefault(model, OrderedDict())
    # Buffers that are made in inference mode could not be written outside it later. Casts of autocast belong to a
    # single call, and a graph outlives it: the step runs in the dtype of the weights.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        step = cast(Step | None, kept.pop(kept_key, None))
        if step is None:
            while len(kept) >= _KEPT:
                kept.popitem(last=False)
            step = make()
        yield step
    if keep:
        kept[kept_key] = step
