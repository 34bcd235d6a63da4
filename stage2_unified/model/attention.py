"""The decoder's attention, and the keys and values that its passes share.

:func:`attention` is registered with ``transformers`` as the implementation :data:`ATTENTION` and replaces "sdpa". It
differs in one argument: ``kv``, an object that a layer reads keys and values from or writes them to. A pass gets a
list with one object a layer, and :func:`give_layers_their_kv` lets each layer see its own. A layer does not read its
index then, as it would with a ``Cache`` of ``transformers``, so that all layers share one compiled graph.

B sequences, h query heads, g key-value heads, Q queries, C columns (keys), d values of a head.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "medunifier"


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


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    kv: KV | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention with grouped key-value heads, in the interface of ``transformers``.

    Args:
        module: the attention layer, not read.
        query: (B, h, Q, d).
        key, value: (B, g, Q, d); h is a multiple of g.
        attention_mask: (B or 1, 1, Q, C) bool, True where a query attends to a column, or a block mask; None =
            causal, or all columns for a single query.
        dropout: on the attention weights; not with a block mask.
        scaling: of the scores; None = d^-0.5.
        kv: keys and values shared between passes; None = those of this pass.

    Returns:
        (B, Q, h, d), and None in place of the attention weights.
    """
    if kv is not None:
        key, value = kv.update(key, value)
    key, value = key.to(query.dtype), value.to(query.dtype)
    if isinstance(attention_mask, BlockMask):
        output: Any = flex_attention(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
        return output.transpose(1, 2), None
    queries, groups = query.shape[2], query.shape[1] // key.shape[1]
    if attention_mask is None:
        is_causal = queries > 1 and attention_mask is None  # in this order a bool, also of a symbolic length
        output = scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=is_causal, scale=scaling, enable_gqa=groups > 1
        )
        return output.transpose(1, 2), None
    # Fused kernels that take a mask know no groups of heads. The heads of a group share keys and values: a single
    # query of each head is a further query of its group; longer ones get copies of keys and values.
    packed = queries == 1 and groups > 1
    if packed:
        query = query.unflatten(1, (-1, groups)).flatten(2, 3)
    elif groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    output = scaled_dot_product_attention(query, key, value, attention_mask, dropout_p=dropout, scale=scaling)
    if packed:
        output = output.flatten(1, 2)[:, :, None]
    return output.transpose(1, 2), None


AttentionInterface.register(ATTENTION, attention)


def give_layers_their_kv(layers: Sequence[nn.Module]) -> None:
    """Let each decoder layer, which gets the ``kv`` of all layers as a list, see its own."""
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(partial(_select_kv, number), with_kwargs=True)


def _select_kv(number: int, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    kv = kwargs.get("kv")
    return None if kv is None else (args, kwargs | {"kv": kv[number]})


def branch_mask(
    prefix_length: Tensor, columns: int, branches: int, width: int, structured: bool
) -> Tensor | BlockMask:
    """Return the mask of several branches, packed one after the other into a row, over the prefix of the row.

    A branch attends to its prefix and, causally, to itself; not to the other branches, and not to the padding
    between a shorter prefix and the branches.

    Args:
        prefix_length: (B,) ids of each prefix without padding.
        columns: of the prefixes, with padding.
        branches: n of a row.
        width: ids of a branch, with padding on the right.
        structured: as a block mask, from which FlexAttention knows what it need not compute; it is for compiled
            layers on a GPU. A boolean matrix otherwise.

    Returns:
        A mask of (B, 1, n * width queries, columns + n * width keys).
    """

    def visible(batch: Tensor, _: Tensor, query: Tensor, column: Tensor) -> Tensor:
        own = column - columns
        same_branch = (own >= 0) & (own // width == query // width)
        return (column < prefix_length[batch]) | (same_branch & (own <= query))

    queries = branches * width
    if structured:
        shape = (len(prefix_length), None, queries, columns + queries)
        return create_block_mask(visible, *shape, device=prefix_length.device)
    device = prefix_length.device
    batch = torch.arange(len(prefix_length), device=device)[:, None, None, None]
    row = torch.arange(queries, device=device)[:, None]
    return visible(batch, batch, row, torch.arange(columns + queries, device=device))
