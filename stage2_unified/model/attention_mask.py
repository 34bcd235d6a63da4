"""Attention mask for bidirectional images: full attention within an image's codes, causal everywhere else."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.attention import ATTENTION
from medunifier.stage2_unified.model.vocabulary import EMB_IMG, Vocabulary


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
