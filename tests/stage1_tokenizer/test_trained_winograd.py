"""Training by Winograd's convolutions: outputs and gradients against float64; a run that takes the plain course."""

import pytest
import torch
from torch.nn.functional import conv2d

from shared.errors import UsageError
from shared.run_folder import read_metrics
from stage1_tokenizer import compiled, winograd
from stage1_tokenizer.config import DataConfig, Stage1Config
from stage1_tokenizer.train import main
from stage1_tokenizer.vqgan import VQGAN
from stage1_tokenizer.winograd import TrainedWinogradConv2d, train_by_winograd


@pytest.fixture(autouse=True)
def _compiler():
    if compiled.kernels() is None:
        pytest.skip("no C compiler on this machine")


def layer(before, after, bias=True):
    return TrainedWinogradConv2d.of(torch.nn.Conv2d(before, after, 3, padding=1, bias=bias))


def passes(monkeypatch):
    """A list that grows by one with each compiled convolution."""
    counted = []
    plain = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *given: counted.append(1) or plain(*given))
    return counted


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "outputs"), [(64, 96), (128, 64)])
def test_output_and_all_gradients_equal_those_in_float64(channels, outputs, bias, last, monkeypatch):
    own, counted = layer(channels, outputs, bias), passes(monkeypatch)
    x = torch.randn(3, channels, 16, 20)
    if last:
        x = x.to(memory_format=torch.channels_last)
        own = own.to(memory_format=torch.channels_last)
    given, onto = x.requires_grad_(), torch.randn(3, outputs, 16, 20)
    found = own(given)
    found.backward(onto)
    assert len(counted) == 2
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, own.weight, *([own.bias] if bias else []))]
    expected = conv2d(*exact, padding=1)
    expected.backward(onto.double())
    assert (found - expected).abs().max() < 8e-5 * expected.std()
    for mine, theirs in zip((given, *own.parameters()), exact, strict=True):
        assert (mine.grad - theirs.grad).abs().max() < 8e-5 * theirs.grad.std()


def test_a_changed_kernel_is_used_at_once_and_no_gradient_means_none():
    own, x = layer(64, 64), torch.randn(2, 64, 16, 16)
    before = own(x)
    with torch.no_grad():
        own.weight.mul_(2)
        torch.testing.assert_close(own(x), 2 * before - own.bias[:, None, None], atol=1e-4, rtol=0)
    own.requires_grad_(False)
    given = x.requires_grad_()
    own(given).sum().backward()
    assert given.grad is not None and own.weight.grad is None


def test_is_the_direct_convolution_where_it_cannot_pay_or_be_used(monkeypatch):
    own, counted = layer(64, 64), passes(monkeypatch)
    for shape in ((1, 64, 8, 8), (4, 64, 30, 32), (4, 64, 32, 30)):
        x = torch.randn(shape)
        assert torch.equal(own(x), conv2d(x, own.weight, own.bias, padding=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert own(torch.randn(4, 64, 16, 16)).dtype == torch.bfloat16
    assert not counted


def test_what_is_replaced_keeps_its_names_and_weights():
    model = VQGAN({"ch": 64, "ch_mult": [1, 2], "resolution": 32, "attn_resolutions": [], "quantizer": "classic"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count = train_by_winograd(model)
    found = [module for module in model.modules() if isinstance(module, TrainedWinogradConv2d)]
    assert count == len(found) > 20
    assert model.last_layer is model.decoder.conv_out.weight
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_a_run_takes_the_course_of_the_plain_one(image_shards, tmp_path, monkeypatch):
    """All losses and the discriminator on; the smallest run's layers are made wide enough."""
    monkeypatch.setattr(winograd, "MIN_TILES", 1)
    counted = passes(monkeypatch)
    wide = ["--model.ch", "64", "--model.ch_mult", "[1,1]", "--model.resolution", "32", "--model.attn_resolutions",
            "[]", "--loop.steps", "4", "--loop.batch_size", "2", "--loop.log_every", "1", "--loop.threads", "1",
            "--loss.perceptual.net", "none", "--loss.discriminator.train_from", "0", "--loss.discriminator.start",
            "1", "--loss.discriminator.ramp", "1"]  # fmt: skip
    for name, more in (("plain", []), ("winograd", ["--winograd", "true"])):
        main(["--data.shards", str(image_shards), "--run_dir", str(tmp_path / name), *wide, *more])
    assert len(counted) > 100
    plain, own = (
        [line for line in read_metrics(tmp_path / name) if "adaptive_weight" in line]
        for name in ("plain", "winograd")
    )
    assert len(plain) == 3  # from the second step on
    for mine, theirs in zip(own, plain, strict=True):
        for figure in ("l1", "codebook", "adaptive_weight", "discriminator"):
            assert mine[figure] == pytest.approx(theirs[figure], rel=2e-2), figure


def test_it_is_refused_beside_what_it_cannot_go_with_and_told_where_it_does_nothing(
    image_shards, tmp_path, monkeypatch, capsys
):
    with pytest.raises(ValueError, match="plain float32"):
        Stage1Config(DataConfig("-"), "-", compile=True, winograd=True)
    with pytest.raises(UsageError, match="plain float32"):
        main(["--data.shards", str(image_shards), "--run_dir", str(tmp_path / "a"), "--winograd", "true",
              "--loop.mixed_precision", "bf16"])  # fmt: skip
    monkeypatch.setattr(winograd, "kernels", lambda: None)
    assert train_by_winograd(VQGAN({"ch": 64, "ch_mult": [1], "resolution": 32, "attn_resolutions": []})) == 0
