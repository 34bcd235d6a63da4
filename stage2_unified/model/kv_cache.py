"""The KV cache: keys and values that the decoder's passes record, continue or write, one object a layer.

B sequences, g key-value heads, Q queries, C columns (keys), d values of a head.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class KV(Protocol):
    """Keys and values of one layer."""

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take (B, g, Q, d) keys and values of a pass; return the (B, g, C, d) ones that its queries attend to."""


class RecordedKV:
    """Keep the keys and values of a pass. A layer recomputed in the backward pass replaces them by the same."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values unchanged."""
        self.keys, self.values = key, value
        return key, value


class ContinuedKV:
    """Continue a recorded pass: the first columns of its first sequences precede the keys and values of this one."""

    def __init__(self, recorded: RecordedKV, sequences: int, columns: int) -> None:
        assert recorded.keys is not None and recorded.values is not None  # noqa: S101 - narrows a type
        self.keys = recorded.keys[:sequences, :, :columns]
        self.values = recorded.values[:sequences, :, :columns]

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the recorded keys and values, followed by those of the pass."""
        return torch.cat([self.keys, key], dim=2), torch.cat([self.values, value], dim=2)


class StaticKV:
    """Buffers of a fixed number of columns, written in place: no shape changes from one decoded token to the next.

    Args:
        keys, values: (B, g, C, d), zeros: a masked column that is not a number would spoil the sum over columns.
        column: (Q,) int64 columns that the next pass writes; the decoding step advances it in place.
        end: attend to the columns before it. The buffers are not passed as views of these columns, since the compiler
            makes a graph for each kind of view.
    """

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor, end: int) -> None:
        self.keys, self.values, self.column, self.end = keys, values, column, end

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values; return the columns before ``end``, of which a mask must hide the empty ones."""
        self.keys.index_copy_(2, self.column, key.to(self.keys.dtype))
        self.values.index_copy_(2, self.column, value.to(self.values.dtype))
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]


def give_layers_their_kv(layers: Sequence[nn.Module]) -> None:
    """Let each decoder layer, which gets the ``kv`` of all layers as a list, see its own."""
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(partial(_select_kv, number), with_kwargs=True)


def _select_kv(number: int, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    kv = kwargs.get("kv")
    return None if kv is None else (args, kwargs | {"kv": kv[number]})
