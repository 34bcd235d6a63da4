"""Lookup, gradients and the upkeep of the codebook."""

import copy

import pytest
import torch

from stage1_tokenizer.config import QuantizerConfig
from stage1_tokenizer.quantizers import ClassicQuantizer, UnitNormQuantizer, base, nearest_entry

KINDS = {"classic": ClassicQuantizer, "unit_norm": UnitNormQuantizer}


def test_lookup_is_exact_against_float64_under_autocast_and_in_chunks(monkeypatch):
    torch.manual_seed(0)
    z, table = torch.randn(999, 8), torch.randn(512, 8)
    exact = torch.cdist(z.double(), table.double()).argmin(dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_entry(z, table), exact)
        # What the float32 rule protects from: the same products in bf16 choose other entries.
        coarse = (table.square().sum(1) - 2 * (z @ table.T).float()).argmin(dim=1)
        assert (coarse != exact).float().mean() > 0.005
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", 512 * 10)
    assert torch.equal(nearest_entry(z, table), exact)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_entries_are_those_of_the_folded_table(kind):
    torch.manual_seed(1)
    quantizer = KINDS[kind](64, 4, QuantizerConfig(kind))
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.randn(64, 4))
    z = torch.randn(3, 4, 5, 5)
    result = quantizer(z)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.equal(nearest_entry(rows, quantizer.table()), result.codes.flatten())
    assert torch.equal(quantizer.lookup(z), result.codes)
    torch.testing.assert_close(result.z_q, quantizer.embed(result.codes), atol=1e-6, rtol=0)


def test_unit_norm_looks_at_directions_alone():
    quantizer = UnitNormQuantizer(64, 4, QuantizerConfig())
    z = torch.randn(2, 4, 5, 5)
    assert torch.equal(quantizer.lookup(z), quantizer.lookup(7 * z))
    torch.testing.assert_close(quantizer.table().norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_passes_straight_through(kind):
    quantizer = KINDS[kind](16, 4, QuantizerConfig(kind))
    z = torch.nn.functional.normalize(torch.randn(1, 4, 3, 3), dim=1).requires_grad_()
    weight = torch.randn(1, 4, 3, 3)
    (quantizer(z).z_q * weight).sum().backward()
    if kind == "classic":
        torch.testing.assert_close(z.grad, weight)
    else:  # the sphere takes away what points along z
        along = (weight * z).sum(dim=1, keepdim=True) * z
        torch.testing.assert_close(z.grad, (weight - along).detach(), atol=1e-5, rtol=1e-5)


def collapsed_steps(quantizer, steps, seed=0):
    """Train-mode passes over vectors that lie in one small corner of the sphere."""
    draw = torch.Generator().manual_seed(seed)
    quantizer.train()
    for _ in range(steps):
        z = torch.nn.functional.normalize(torch.randn(8, 8, 4, 4, generator=draw), dim=1) * 0.3
        z[:, 0] += 1
        quantizer(z)
        quantizer.end_step()
    return quantizer.lookup(z)


def test_dead_entries_are_revived_and_only_they():
    torch.manual_seed(2)
    start = UnitNormQuantizer(64, 8, QuantizerConfig(revive_every=10))
    never = copy.deepcopy(start)
    never.config = QuantizerConfig(revive_every=0)
    unmoved = never.embedding.weight.detach().clone()
    before = len(collapsed_steps(never, 200).unique())
    after = len(collapsed_steps(start, 200).unique())
    assert before <= 16 and after >= 48
    assert torch.equal(never.embedding.weight, unmoved)


def test_revival_continues_to_the_last_bit_from_a_saved_state():
    torch.manual_seed(3)
    whole = UnitNormQuantizer(64, 8, QuantizerConfig(revive_every=3))
    part = copy.deepcopy(whole)
    for seed in range(6):
        collapsed_steps(whole, 2, seed)
    for seed in range(3):
        collapsed_steps(part, 2, seed)
    resumed = UnitNormQuantizer(64, 8, QuantizerConfig(revive_every=3))
    resumed.load_state_dict(part.state_dict())
    for seed in range(3, 6):
        collapsed_steps(resumed, 2, seed)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_validation_does_not_count_as_use():
    quantizer = UnitNormQuantizer(16, 4, QuantizerConfig(revive_every=1)).eval()
    state = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(2, 4, 3, 3))
    quantizer.end_step()
    assert all(torch.equal(state[name], tensor) for name, tensor in quantizer.state_dict().items())
