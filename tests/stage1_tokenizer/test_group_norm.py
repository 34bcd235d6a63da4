"""The compiled GroupNorm: against float64, far from zero, with its swish, and PyTorch's where it cannot be used."""

import pytest
import torch
from torch.nn.functional import group_norm as stock
from torch.nn.functional import silu

from stage1_tokenizer import compiled
from stage1_tokenizer.group_norm import CompiledGroupNorm
from stage1_tokenizer.layers import ResnetBlock
from stage1_tokenizer.winograd import use_winograd


@pytest.fixture(autouse=True)
def _compiler():
    if compiled.kernels() is None:
        pytest.skip("no C compiler on this machine")


def norm(channels, groups=32):
    layer = torch.nn.GroupNorm(groups, channels, eps=1e-6)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return CompiledGroupNorm.of(layer)


def exact(own, x, swish=False):
    value = stock(x.double(), own.num_groups, own.weight.double(), own.bias.double(), own.eps)
    return silu(value) if swish else value


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("shape", [(3, 64, 8, 8), (1, 32, 5, 7), (2, 128, 72, 64), (4, 96, 1, 1)])
@torch.no_grad()
def test_equals_float64_in_either_layout(shape, swish):
    own, x = norm(shape[1]), 3 * torch.randn(shape) + 1
    for given in (x, x.to(memory_format=torch.channels_last)):
        before = given.clone()
        found = own(given, swish=swish)
        torch.testing.assert_close(found, exact(own, x, swish).float(), atol=3e-6, rtol=1e-6)
        assert torch.equal(given, before)


@torch.no_grad()
def test_values_far_from_zero_keep_their_variance():
    own, x = norm(32), torch.randn(1, 32, 64, 64) + 300
    found, theirs = own(x), stock(x, 32, own.weight, own.bias, own.eps)
    error = (found - exact(own, x)).abs().max()
    assert error < 2e-3 and error <= (theirs - exact(own, x)).abs().max() * 1.5


@torch.no_grad()
def test_swish_from_end_to_end_of_float32():
    values = torch.cat([torch.linspace(-120, 120, 10_000), torch.tensor([-1e30, -3e4, 3e4, 1e30, 0.0, -0.0])])
    x = values[: len(values) // 8 * 8].view(1, 8, -1, 1)
    out = torch.empty_like(x.permute(0, 2, 3, 1).contiguous())
    rows, ones, zeros = x.permute(0, 2, 3, 1).contiguous(), torch.ones(8), torch.zeros(8)
    addresses = [tensor.data_ptr() for tensor in (rows, out, ones, zeros)]
    compiled.kernels().scale_shift(*addresses, 1, x.shape[2], 8, 1, 1)
    torch.testing.assert_close(out, silu(rows.double()).float(), rtol=1e-6, atol=1e-35)


@torch.no_grad()
def test_every_number_of_threads_gives_the_same_bytes_and_x_is_overwritten_only_on_request():
    own, x = norm(64), torch.randn(2, 64, 70, 70).to(memory_format=torch.channels_last)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(own(x, swish=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found)
    assert torch.equal(own(x, swish=True, overwrite=True), found[0]) and torch.equal(x, found[0])


def test_is_pytorchs_where_it_cannot_be_used():
    own, x = norm(64), torch.randn(2, 64, 8, 8)
    theirs = stock(x, 32, own.weight, own.bias, own.eps)
    assert torch.equal(own(x), theirs) and own(x).requires_grad
    with torch.no_grad():
        odd = norm(36, 6)
        y = torch.randn(1, 36, 4, 4)
        assert torch.equal(odd(y, swish=True), silu(stock(y, 6, odd.weight, odd.bias, odd.eps)))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(own(x), stock(x, 32, own.weight, own.bias, own.eps))


@torch.no_grad()
@pytest.mark.parametrize(("before", "after"), [(64, 64), (64, 128)])
def test_a_block_of_it_leaves_its_input_alone_and_equals_the_plain_one(before, after):
    block, x = ResnetBlock(before, after, 32).eval(), torch.randn(2, before, 12, 8)
    plain, kept = block(x), x.clone()
    holder = torch.nn.ModuleList([block])
    assert use_winograd(holder) == 2 and isinstance(block.norm1, CompiledGroupNorm)
    torch.testing.assert_close(block(x), plain, atol=1e-4, rtol=0)
    assert torch.equal(x, kept)
