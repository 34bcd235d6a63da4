"""Chance levels: the loss of a model that has learned nothing, logged beside each loss."""

import math

from medunifier.stage2_unified.objectives.matching import NEGATIVES


def chance_levels(global_batch: int, text_classes: int, image_classes: int) -> dict[str, float]:
    """Return the chance level in nats by objective.

    Args:
        global_batch: B, studies of the contrastive loss.
        text_classes: ids that a text position is classified into.
        image_classes: K, ids that an image position is classified into.
    """
    matched = 1 / (1 + NEGATIVES)
    prior_entropy = -matched * math.log(matched) - (1 - matched) * math.log(1 - matched)
    return {
        "contrast": math.log(global_batch),
        "matching": prior_entropy,
        "report": math.log(text_classes),
        "image": math.log(image_classes),
    }
