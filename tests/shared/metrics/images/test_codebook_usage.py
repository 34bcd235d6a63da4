"""Codebook usage and perplexity against plain counting and scipy's entropy."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from medunifier.shared.metrics.images.codebook_usage import CodeCount
from tests.seeds import for_seeds


@for_seeds(200)
def test_usage_and_perplexity_over_batches_are_those_of_all_codes(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 40))
    codes = rng.integers(0, rng.integers(1, size + 1), size=(rng.integers(1, 6), 3, 4))
    count = CodeCount(size)
    for batch in codes:
        count.add(torch.from_numpy(batch))
    got = count.figures()
    assert got["codebook_usage"] == pytest.approx(len(set(codes.ravel().tolist())) / size)
    assert got["perplexity"] == pytest.approx(np.exp(entropy(np.bincount(codes.ravel()))))


def test_without_a_code_nothing_is_used():
    assert CodeCount(4).figures() == {"codebook_usage": 0, "perplexity": 1}
