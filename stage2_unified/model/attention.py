"""The decoder's attention and its masks.

:func:`attention` is registered with ``transformers`` as the implementation :data:`ATTENTION` and replaces "sdpa". It
differs in one argument: ``kv``, an object of ``kv_cache.py`` that a layer reads keys and values from or writes them
to. A pass gets a list with one object a layer, and :func:`give_layers_their_kv` lets each layer see its own. A layer
does not read its index then, as it would with a ``Cache`` of ``transformers``, so that all layers share one compiled
graph.

B sequences, h query heads, g key-value heads, Q queries, C columns (keys), d values of a head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.kv_cache import KV
from medunifier.stage2_unified.model.vocabulary import EMB_IMG, Vocabulary

ATTENTION = "medunifier"


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


class BranchGroup(NamedTuple):
    """Branches of one width.

    Attributes:
        branches: n of a row.
        width: ids of a branch, with padding on the right.
        whole_prefix: whether they attend to the whole prefix; False: to its first column alone, ``<bos>``.
    """

    branches: int
    width: int
    whole_prefix: bool = True

    @property
    def columns(self) -> int:
        """Columns of all branches together."""
        return self.branches * self.width


def branch_mask(
    prefix_length: Tensor, columns: int, groups: Sequence[BranchGroup], structured: bool
) -> Tensor | BlockMask:
    """Return the mask of several branches, packed one after the other into a row, over the prefix of the row.

    A branch attends to its prefix and, causally, to itself; not to the other branches, and not to the padding
    between a shorter prefix and the branches.

    Args:
        prefix_length: (B,) ids of each prefix without padding.
        columns: of the prefixes, with padding.
        groups: the branches, in their order.
        structured: as a block mask, from which FlexAttention knows what it need not compute; it is for compiled
            layers on a GPU. A boolean matrix otherwise.

    Returns:
        A mask of (B, 1, Q, columns + Q), of the Q columns of all groups.
    """
    device, queries = prefix_length.device, sum(group.columns for group in groups)
    offsets = [sum(group.columns for group in groups[:number]) for number in range(len(groups))]
    begin = torch.cat(
        [
            torch.arange(group.columns, device=device) // group.width * group.width + offset
            for group, offset in zip(groups, offsets, strict=True)
        ]
    )  # (Q,) first column of the branch of each query
    whole = torch.cat([
        torch.full((group.columns,), group.whole_prefix, device=device) for group in groups
    ])  # fmt: skip

    def visible(batch: Tensor, _: Tensor, query: Tensor, column: Tensor) -> Tensor:
        own = column - columns
        of_prefix = (column == 0) | (whole[query] & (column < prefix_length[batch]))
        return of_prefix | ((own >= begin[query]) & (own <= query))

    if structured:
        shape = (len(prefix_length), None, queries, columns + queries)
        return create_block_mask(visible, *shape, device=device)
    batch = torch.arange(len(prefix_length), device=device)[:, None, None, None]
    row = torch.arange(queries, device=device)[:, None]
    return visible(batch, batch, row, torch.arange(columns + queries, device=device))


def bidirectional_image_mask(ids: Tensor, vocabulary: Vocabulary, visible: Tensor | None = None) -> Tensor:
    """Return the mask of image-first sequences, in which the codes of one image attend to each other.

    An image counts if ``<emb_img>`` follows it in its sequence. An image that is generated, after a report, stays
    causal, since it is sampled code by code. No code attends to later codes of another image.

    Args:
        ids: (B, L) of whole sequences, from their first id on.
        vocabulary: of the ids.
        visible: (B, L), 0 on padding; None = no padding that a real id could attend to.

    Returns:
        (B, 1, L, L) bool, True where query i attends to key j; causal in a sequence without such an image. A pad
        attends to itself alone, since a softmax over no key is NaN.
    """
    is_code = ids >= vocabulary.offset
    before_emb_img = (ids == vocabulary[EMB_IMG]).flip(1).cumsum(1).flip(1) > 0
    bidirectional = is_code & before_emb_img
    image = (~is_code).cumsum(1)  # differs between images, which have <eoi>, <view> and <boi> between them
    same_image = image[:, :, None] == image[:, None, :]
    full = same_image & bidirectional[:, :, None] & bidirectional[:, None, :]
    mask = full | torch.ones_like(full[0]).tril()
    if visible is not None:
        diagonal = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        mask = mask & visible.bool()[:, None, :] | diagonal
    return mask[:, None]


def causal_mask(visible: Tensor | None, queries: int, past: int, device: torch.device) -> Tensor | None:
    """Return the mask of sequences that continue ``past`` columns, some of which may be padding.

    Args:
        visible: (B, past + queries), 0 on padding; None = no padding.
        queries: ids of this pass.
        past: columns of earlier passes.
        device: of the mask.

    Returns:
        (B or 1, 1, queries, past + queries) bool; None where attention needs no mask: a causal pass from the first
        column on, or a single query that attends to all. A pad attends to itself alone.
    """
    if visible is None and (queries == 1 or past == 0):
        return None
    rows = past + torch.arange(queries, device=device)[:, None]
    columns = torch.arange(past + queries, device=device)
    causal = columns <= rows
    if visible is None:
        return causal[None, None]
    return (causal & (visible.bool()[:, None] | (columns == rows)))[:, None]


def for_attention(mask: Tensor, decoder: PreTrainedModel, dtype: torch.dtype) -> Tensor:
    """Return a boolean mask in the form that the decoder's attention implementation takes.

    ``transformers`` passes masks with four dimensions on as they are: ours takes booleans, ``eager`` adds the
    mask to the scores, and the others have their own formats.

    Args:
        mask: (B, 1, Q, K) bool, True where a query attends to a key.
        decoder: the transformer that will get the mask.
        dtype: of the attention scores.

    Returns:
        (B, 1, Q, K) bool, or ``dtype`` with 0 and its lowest value.

    Raises:
        UserError: for another implementation.
    """
    implementation = decoder.config._attn_implementation
    if implementation == ATTENTION:
        return mask
    if implementation == "eager":
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    raise UserError(
        f"attn_implementation={implementation!r} cannot generate images or use bidirectional_images: load the model "
        "with attn_implementation='sdpa'"
    )
