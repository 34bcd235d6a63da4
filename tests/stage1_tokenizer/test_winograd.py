"""Winograd's convolution: against float64, at every edge, and as the direct one where it cannot be used."""

import pytest
import torch
from torch.nn.functional import conv2d, silu

from stage1_tokenizer import compiled, winograd
from stage1_tokenizer.frozen import FrozenTokenizer
from stage1_tokenizer.vqgan import VQGAN
from stage1_tokenizer.winograd import WinogradConv2d, use_winograd


@pytest.fixture(params=["compiled", "operations"], autouse=True)
def way(request, monkeypatch, tmp_path_factory):
    """Both ways of computing it."""
    if request.param == "operations":
        monkeypatch.setattr(winograd, "kernels", lambda: None)
    elif compiled.kernels() is None:
        pytest.skip("no C compiler on this machine")
    return request.param


def layer(before, after, bias=True):
    return WinogradConv2d.of(torch.nn.Conv2d(before, after, 3, padding=1, bias=bias))


@pytest.mark.parametrize("tile_channels", [1, 64 * 8, 64 * 24, 2**16])
@pytest.mark.parametrize(
    ("shape", "outputs"), [((3, 64, 16, 16), 64), ((2, 64, 32, 16), 96), ((5, 96, 8, 8), 64), ((1, 64, 28, 4), 64)]
)
def test_equals_the_direct_convolution_whatever_the_strips(shape, outputs, tile_channels, monkeypatch):
    monkeypatch.setattr(winograd, "TILE_CHANNELS", tile_channels)
    own, x = layer(shape[1], outputs), torch.randn(shape)
    exact = conv2d(x.double(), own.weight.double(), own.bias.double(), padding=1)
    with torch.no_grad():
        for images in (x, x.to(memory_format=torch.channels_last)):
            found = own(images)
            assert found.shape == exact.shape
            assert (found - exact).abs().max() < 2e-5 * exact.std() * 4


def test_every_number_of_threads_gives_the_same_bytes():
    own, x = layer(64, 96), torch.randn(3, 64, 20, 12)  # 45 tiles: blocks and shares with an end
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            with torch.no_grad():
                found.append(own(x))
    finally:
        torch.set_num_threads(threads)
    exact = conv2d(x.double(), own.weight.double(), own.bias.double(), padding=1)
    assert (found[0] - exact).abs().max() < 8e-5 * exact.std()
    if own.compiled:
        assert all(torch.equal(one, found[0]) for one in found)


def test_numbers_of_channels_that_fill_no_vector_go_the_other_way(way):
    own, x = layer(68, 72), torch.randn(1, 68, 8, 8)
    assert not own.compiled
    with torch.no_grad():
        torch.testing.assert_close(own(x), conv2d(x, own.weight, own.bias, padding=1), atol=5e-5, rtol=0)


def test_without_a_compiler_or_room_there_is_no_library(monkeypatch, tmp_path, way):
    if way == "operations":
        return
    (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("MEDUNIFIER_CACHE", str(tmp_path / "cache"))
    for name, value in (("CC", str(tmp_path / "cc")), ("CC", "no-such-compiler"), ("MEDUNIFIER_COMPILED", "0")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert compiled.kernels.__wrapped__() is None
    assert not list((tmp_path / "cache").rglob("*.so"))
    assert compiled.kernels.__wrapped__() is not None
    assert len(list((tmp_path / "cache").rglob("*"))) == 2  # the folder and the library


def test_without_bias():
    own, x = layer(64, 64, bias=False), torch.randn(1, 64, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(own(x), conv2d(x, own.weight, padding=1), atol=5e-5, rtol=0)


def test_swish_is_taken_on_the_way():
    own = layer(64, 64)
    for size in (8, 10):
        x = torch.randn(2, 64, size, size)
        with torch.no_grad():
            before = x.clone()
            found = own(x, swish=True)
            torch.testing.assert_close(found, own(silu(x)), atol=1e-6, rtol=0)
            assert torch.equal(x, before)


def test_what_is_added_is_added():
    own, x, more = layer(64, 96), torch.randn(2, 64, 8, 8), torch.randn(2, 96, 8, 8)
    with torch.no_grad():
        for size in (8, 6):
            part, rest = x[..., :size], more[..., :size]
            torch.testing.assert_close(own(part, add=rest), own(part) + rest, atol=1e-6, rtol=0)


def test_is_the_direct_convolution_where_it_cannot_be_used():
    own = layer(64, 64)
    for x in (torch.randn(1, 64, 10, 8), torch.randn(1, 64, 8, 6)):
        with torch.no_grad():
            assert torch.equal(own(x), conv2d(x, own.weight, own.bias, padding=1))
    x = torch.randn(1, 64, 8, 8)
    assert torch.equal(own(x), conv2d(x, own.weight, own.bias, padding=1)) and own(x).requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert own(x).dtype == torch.bfloat16


def test_replaces_what_pays_and_changes_no_key():
    model = VQGAN({"ch": 64, "ch_mult": [1, 2], "resolution": 32, "attn_resolutions": [], "quantizer": "classic"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count = use_winograd(model.encoder)
    # Two blocks a level and in the middle, of two convolutions each, and the last; not the first, of one channel.
    assert count == 2 * (2 + 2 + 2) + 1
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert not isinstance(model.encoder.conv_in, WinogradConv2d)
    assert not isinstance(model.encoder.down[0].downsample.conv, WinogradConv2d)


def test_tokenizer_gives_the_same_codes_up_to_near_ties():
    model = VQGAN({"ch": 64, "norm_groups": 32, "ch_mult": [1, 2], "resolution": 64, "attn_resolutions": [],
                   "n_embed": 512, "embed_dim": 8, "z_channels": 32}).eval()  # fmt: skip
    images = torch.rand(6, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        rows = torch.nn.functional.normalize(model.encode(images).permute(0, 2, 3, 1).flatten(0, 2), dim=1)
        model.quantize.embedding.weight.copy_(rows[torch.randperm(len(rows))[:512]])
    tokenizer = FrozenTokenizer(model)
    codes, fingerprint = tokenizer.encode_indices(images), tokenizer.fingerprint
    tokenizer.use_winograd()
    found = tokenizer.encode_indices(images)
    assert len(codes.unique()) > 200
    assert (found != codes).sum() <= 3  # of 6,144
    tokenizer._take_fingerprint()
    assert tokenizer.fingerprint == fingerprint
