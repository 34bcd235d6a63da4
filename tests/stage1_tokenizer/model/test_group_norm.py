"""GroupNorm: PyTorch's in float32; in bfloat16 float32 statistics of maps that stay bfloat16, for any mean."""

import pytest
import torch
from torch import nn

from medunifier.stage1_tokenizer.model.discriminator import PatchDiscriminator
from medunifier.stage1_tokenizer.model.layers import GroupNorm
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from tests.stage1_tokenizer.conftest import TINY


def norms_with_the_same_weights(groups=4, channels=12):
    ours, theirs = GroupNorm(groups, channels, eps=1e-6), nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def result(norm, x, weight, call=None):
    x = x.clone().requires_grad_()
    y = (call or norm)(x)
    (y.float() * weight).sum().backward()
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad


def test_float32_is_bitwise_that_of_pytorch():
    ours, theirs = norms_with_the_same_weights()
    x, weight = torch.randn(3, 12, 7, 5) + 1, torch.randn(3, 12, 7, 5)
    assert all(map(torch.equal, result(ours, x, weight), result(theirs, x, weight)))


@pytest.mark.parametrize("offset", [0.0, 8.0])
def test_bfloat16_map_stays_one_and_values_and_gradients_are_those_of_float32(offset):
    torch.manual_seed(0)
    ours, theirs = norms_with_the_same_weights()
    # A large mean and a small deviation, where a mean of squares less the square of the mean loses all digits.
    x = (torch.randn(3, 12, 16, 16) + offset * torch.arange(1, 13)[:, None, None]).bfloat16()
    weight = torch.randn(3, 12, 16, 16).bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = result(ours, x, weight, ours.normalize_half)  # as on a GPU
    expected = result(theirs, x.float(), weight)
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    for name, a, b in zip(("value", "gradient", "weight", "bias"), found, expected, strict=True):
        error = float((a.float() - b).norm() / b.norm())
        assert error < 0.005, (name, error)  # half a unit in the last place of bfloat16 is 0.4 %


def test_networks_have_no_other_group_norm():
    for network in (VQGAN(TINY), PatchDiscriminator(1, 8, 2, "group")):
        norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        assert norms and all(type(module) is GroupNorm for module in norms)


def test_a_model_under_autocast_has_no_float32_map(monkeypatch):
    """On a GPU, autocast would run PyTorch's GroupNorm in float32, and the activation after it."""
    monkeypatch.setattr(GroupNorm, "forward", GroupNorm.normalize_half)
    model, maps = VQGAN({**TINY, "norm_groups": 2}), []
    for name, module in model.named_modules():
        if isinstance(module, nn.GroupNorm | nn.Conv2d) and "quant" not in name:
            module.register_forward_hook(lambda _, inputs, output: maps.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(2, 1, 32, 32) * 2 - 1)
    assert len(maps) > 20 and set(maps) == {torch.bfloat16}
