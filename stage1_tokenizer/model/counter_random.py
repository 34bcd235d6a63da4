"""Random numbers as a function of seed, number and column: SplitMix64 (Steele et al., 2014) of a counter.

No generator has to be kept, nothing is read from the device, and values are equal on every device, in every batch and
on any number of processes.
"""

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 2^64 over the golden ratio, as a signed integer, like the two constants below


def uniform(seeds: Tensor, number: int | Tensor, count: int) -> Tensor:
    """(B,) integer seeds -> (B, count) float32 in (0, 1), a function of seed, ``number`` and column alone.

    ``number`` is one for all, or (B, 1); a single seed serves any number of numbers.
    """
    counter = torch.arange(count, device=seeds.device) + number * count
    state = _mix(seeds.long()[:, None] * _GOLDEN) + counter * _GOLDEN
    return ((_mix(state) >> 40 & 0x7FFFFF).float() + 0.5) / 2**23


def gumbel(seeds: Tensor, number: int | Tensor, count: int) -> Tensor:
    """(B,) integer seeds -> (B, count) Gumbel noise: ``(logits + noise).argmax(1)`` samples from softmax(logits)."""
    return -(-uniform(seeds, number, count).log()).log()


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap around; the masks make its shifts logical."""
    state = (state ^ (state >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    state = (state ^ (state >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return state ^ (state >> 31 & 0x1FFFFFFFF)
