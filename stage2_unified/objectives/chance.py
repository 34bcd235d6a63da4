"""What each loss is worth to a model that knows nothing: logged beside it, so that a curve can be read."""

import math

from stage2_unified.objectives.matching import NEGATIVES


def chance_levels(global_batch: int, text_classes: int, codes: int) -> dict[str, float]:
    """Nats by loss.

    Args:
        global_batch: B, studies contrasted with each other.
        text_classes: ids that a text position chooses among.
        codes: K, ids that an image position chooses among.
    """
    matched = 1 / (1 + NEGATIVES)
    prior_entropy = -matched * math.log(matched) - (1 - matched) * math.log(1 - matched)
    return {
        "contrast": math.log(global_batch),
        "matching": prior_entropy,
        "report": math.log(text_classes),
        "image": math.log(codes),
    }
