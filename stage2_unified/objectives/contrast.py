"""Image-text contrast (ITC): the two embeddings of a study attract, those of different studies repel.

Symmetric InfoNCE as in CLIP (Radford et al., 2021), with two changes for radiographs: studies with the same
normalised report are positives of each other (302 of Open-I's 3,955 studies share one impression), and other studies
of the same patient are excluded, being neither positives nor negatives.
"""

import torch
from torch import Tensor


def contrastive_similarity(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Return (B, B) similarities in float32, rows are images.

    Args:
        image, text: (B, E) unit-norm embeddings.
        scale: inverse temperature that the cosines are multiplied by.
    """
    return scale.float() * image.float() @ text.float().T


def contrastive_loss(similarity: Tensor, report_key: Tensor, patient_key: Tensor, has_text: Tensor) -> Tensor:
    """Return the mean of both directions over the studies that have a text embedding.

    Args:
        similarity: (B, B) scaled, rows are images and columns texts, of the global batch.
        report_key: (B,) integers, equal where the normalised reports are equal.
        patient_key: (B,) integers, equal for studies of one patient.
        has_text: (B,) bool, False where the text was dropped for guidance: such a study has no text embedding, and
            takes no part as a row or as a column of a text.

    Returns:
        Scalar in nats; about ln(B) at chance.

    Raises:
        ValueError: if B < 2, since there is nothing to contrast with.
    """
    if len(similarity) < 2:
        raise ValueError(f"contrast needs at least 2 studies in the global batch, got {len(similarity)}")
    same_report = report_key[:, None] == report_key[None, :]
    same_patient = patient_key[:, None] == patient_key[None, :]
    excluded = same_patient & ~same_report  # symmetric, so it serves both directions

    image_to_text = _one_direction(similarity, same_report, excluded | ~has_text[None, :], has_text)
    text_to_image = _one_direction(similarity.T, same_report, excluded, has_text)
    return (image_to_text + text_to_image) / 2


def _one_direction(logits: Tensor, positive: Tensor, excluded: Tensor, counted: Tensor) -> Tensor:
    log_probability = logits.masked_fill(excluded, float("-inf")).log_softmax(dim=1)
    positive = positive & ~excluded
    # where, not a product: 0 x -inf is not a number.
    sums = torch.where(positive, log_probability, 0.0).sum(dim=1)
    loss = -sums / positive.sum(dim=1).clamp(min=1)
    return torch.where(counted, loss, 0.0).sum() / counted.sum().clamp(min=1)
