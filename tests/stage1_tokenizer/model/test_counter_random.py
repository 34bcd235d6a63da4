"""Random numbers by counter: distribution, independence, and the same numbers in any batch."""

import torch

from medunifier.stage1_tokenizer.model.counter_random import gumbel, uniform


def test_numbers_are_uniform_and_independent_between_seeds_steps_and_entries():
    noise = torch.stack([uniform(torch.arange(200), number, 100) for number in range(20)])  # (20, 200, 100)
    assert noise.min() > 0 and noise.max() < 1
    for dim in range(3):
        other = tuple(d for d in range(3) if d != dim)
        assert (noise.mean(dim=other) - 0.5).abs().max() < 0.03
        first, second = noise.narrow(dim, 0, noise.shape[dim] - 1), noise.narrow(dim, 1, noise.shape[dim] - 1)
        assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.01
    assert (torch.histc(noise, 10, 0, 1) / noise.numel() - 0.1).abs().max() < 0.003
    assert torch.equal(uniform(torch.tensor([7]), 3, 100), uniform(torch.tensor([1, 7]), 3, 100)[1:])


def test_gumbel_noise_samples_from_the_softmax():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    samples = (logits + gumbel(torch.arange(20_000), 3, 4)).argmax(dim=1)
    assert torch.allclose(samples.bincount(minlength=4) / 20_000, logits.exp(), atol=0.015)
