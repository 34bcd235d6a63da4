"""Image-text contrast (ITC): the two embeddings of a study attract, those of other studies repel.

Symmetric InfoNCE as in CLIP (Radford et al., 2021), with two changes for radiographs: studies whose
normalised reports are equal are positives of each other (302 of Open-I's 3,955 studies share one
impression), and other studies of the same patient are left out, being neither.
"""

import torch
from torch import Tensor


def contrastive_similarity(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """(B, E), (B, E) unit-norm embeddings -> (B, B) scaled similarities in float32; rows are images."""
    return scale.float() * image.float() @ text.float().T


def contrastive_loss(similarity: Tensor, report_key: Tensor, patient_key: Tensor, has_text: Tensor) -> Tensor:
    """Mean of both directions over the studies whose text was seen.

    Args:
        similarity: (B, B) scaled, rows are images and columns texts, of the global batch.
        report_key: (B,) integers, equal where the normalised reports are equal.
        patient_key: (B,) integers, equal for studies of one patient.
        has_text: (B,) bool, False where the text was dropped for guidance: such a study has no text
            embedding, and takes no part as a row or as a column of a text.

    Returns:
        Scalar in nats; about ln(B) at chance.

    Raises:
        ValueError: if B < 2, since there is nothing to contrast with.
    """
    if len(similarity) < 2:
        raise ValueError(f"contrast needs at least 2 studies in the global batch, got {len(similarity)}")
    same_report = report_key[:, None] == report_key[None, :]
    same_patient = patient_key[:, None] == patient_key[None, :]
    left_out = same_patient & ~same_report  # symmetric, so it serves both directions

    image_to_text = _one_way(similarity, same_report, left_out | ~has_text[None, :], has_text)
    text_to_image = _one_way(similarity.T, same_report, left_out, has_text)
    return (image_to_text + text_to_image) / 2


def _one_way(logits: Tensor, positive: Tensor, left_out: Tensor, rows: Tensor) -> Tensor:
    log_probability = logits.masked_fill(left_out, float("-inf")).log_softmax(dim=1)
    positive = positive & ~left_out
    # where, not a product: 0 x -inf is not a number.
    sums = torch.where(positive, log_probability, 0.0).sum(dim=1)
    loss = -sums / positive.sum(dim=1).clamp(min=1)
    return torch.where(rows, loss, 0.0).sum() / rows.sum().clamp(min=1)
