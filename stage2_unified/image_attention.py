"""Who sees whom where an image is read in both directions: not causal within an image, causal everywhere else."""

import torch
from torch import Tensor

from stage2_unified.vocabulary import EMB_IMG, Vocabulary


def read_both_ways(ids: Tensor, vocabulary: Vocabulary, visible: Tensor | None = None) -> Tensor | None:
    """The mask of rows whose images are read: codes of one image see each other, whichever comes first.

    An image is read if the row's ``<emb_img>`` is still to come. One that is drawn, behind a report, stays causal: it
    has to be sampled code by code. No code sees another image's later codes.

    Args:
        ids: (B, L) of whole rows, from their first id on.
        vocabulary: tells what is a code.
        visible: (B, L), 0 on padding; None = no padding that a real id could see.

    Returns:
        (B, 1, L, L) bool, True where row i may look at column j; None if no row reads an image. A pad sees itself
        alone, since a softmax over nothing is not a number.
    """
    is_code = ids >= vocabulary.offset
    to_come = (ids == vocabulary[EMB_IMG]).flip(1).cumsum(1).flip(1) > 0
    read = is_code & to_come
    if not read.any():
        return None
    image = (~is_code).cumsum(1)  # grows between images, which have <eoi>, <view> and <boi> between them
    together = (image[:, :, None] == image[:, None, :]) & read[:, :, None] & read[:, None, :]
    mask = together | torch.ones_like(together[0]).tril()
    if visible is not None:
        itself = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        mask = mask & visible.bool()[:, None, :] | itself
    return mask[:, None]
