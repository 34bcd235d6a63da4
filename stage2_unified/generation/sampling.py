"""Sample ids from logits by a seed and a number, on the device and without a generator."""

from torch import Tensor

from medunifier.stage1_tokenizer.model.counter_random import gumbel


def sample(
    logits: Tensor,
    seeds: Tensor,
    number: int | Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Sample an id per sequence; it depends on the sequence's logits, its seed and ``number`` alone.

    Args:
        logits: (B, K), -inf for what must not be sampled.
        seeds: (B,) integers.
        number: of the id in its sequence, an integer or (1,) on the device.
        temperature: 0 = the most probable id.
        top_k: only the k most probable ids.
        top_p: only the most probable ids that together reach p.

    Returns:
        (B,) ids in [0, K).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True)
        higher = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        logits = logits.scatter(1, order, ordered.masked_fill(higher >= top_p, float("-inf")))
    return (logits + gumbel(seeds, number, logits.shape[-1])).argmax(dim=-1)
