"""torch.compile: compiled training equals plain training, including the adaptive weight at the last layer, and
gradients of the compiled, channels-last bfloat16 model equal the plain ones."""

from functools import partialmethod

import pytest
import torch
from torch import nn

from medunifier.shared.command import run_command
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.train import main
from tests.stage1_tokenizer.conftest import TINY
from tests.stage1_tokenizer.training.test_train import losses, write_config


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--gradient_checkpointing"]], ids=["plain", "checkpointed"])
def test_compiled_training_equals_plain_training(options, image_shards, tmp_path, monkeypatch):
    # Everything but the code generation, which needs a C++ compiler and takes minutes.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    for name, more in (("plain", []), ("compiled", ["--compile", *options])):
        torch._dynamo.reset()
        config = write_config(tmp_path, image_shards, tmp_path / name, steps=6, checkpoint_every=6)
        assert run_command(main, ["--config", str(config), *more]) == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert any("adaptive_weight" in line for line in compiled)
    for line, expected in zip(compiled, plain, strict=True):
        for name in line.keys() & {"l1", "codebook", "discriminator", "adaptive_weight", "validation/psnr"}:
            assert line[name] == pytest.approx(expected[name], rel=2e-3), (line["step"], name)


@pytest.mark.slow
def test_levels_of_several_sizes_compile_at_every_batch_size():
    """Inductor's C++ code failed on symbolic sizes ("truth value of Relational"), which a second level brought."""
    for batch in (1, 2, 3):
        torch._dynamo.reset()
        model = VQGAN({**TINY, "ch_mult": [1, 1, 1]}).to(memory_format=torch.channels_last)
        images = (torch.rand(batch, 1, 32, 32) * 2 - 1).contiguous(memory_format=torch.channels_last)
        expected = model.encode(images)
        model.compile_blocks()
        found = model.encode(images)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        if batch == 2:  # the backward pass takes as long again to compile
            wanted = torch.autograd.grad(expected.sum(), model.encoder.conv_in.weight)[0]
            torch.testing.assert_close(
                torch.autograd.grad(found.sum(), model.encoder.conv_in.weight)[0], wanted, atol=1e-4, rtol=1e-3
            )


def test_a_model_of_many_levels_is_compiled_whole(monkeypatch):
    """All levels share one `forward`, of which PyTorch compiles eight graphs; the others would run uncompiled."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    model = VQGAN({**TINY, "ch_mult": [1, 1, 1, 2, 2]})
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        model.compile_blocks()
        model(torch.rand(2, 1, 32, 32) * 2 - 1)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled GPU kernels need a GPU")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_compiled_channels_last_bfloat16_gradients_equal_the_plain_ones(device, monkeypatch):
    """pytorch#140913: compiled GroupNorm of four channels per group at 64 x 64 had silently wrong gradients."""
    if device == "cpu":
        monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    torch.manual_seed(0)
    side, width = (256, 128) if device == "cuda" else (64, 32)
    model = VQGAN({"resolution": side, "ch": width, "norm_groups": width // 4, "ch_mult": [1, 2], "num_res_blocks": 1,
                   "attn_resolutions": [], "n_embed": 64, "embed_dim": 8, "z_channels": 32,
                   "front_end": "haar", "front_end_levels": 2}).to(device)  # fmt: skip
    images = torch.rand(2, 1, side, side, device=device) * 2 - 1

    def gradients(fast):
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            z = model.encode(images)
            output = model.decode(z)  # without the lookup, whose codes may change by rounding
        (output.float() - images).square().mean().backward()
        return {name: p.grad.flatten().double() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(fast=False)
    model.to(memory_format=torch.channels_last).compile_blocks()
    images = images.contiguous(memory_format=torch.channels_last)
    found = gradients(fast=True)
    assert found.keys() == plain.keys() and len(plain) > 50
    for name, expected in plain.items():
        if expected.norm() > 1e-3 * max(g.norm() for g in plain.values()):  # a bias before a norm has no gradient
            cosine = float(torch.nn.functional.cosine_similarity(found[name], expected, dim=0))
            ratio = float(found[name].norm() / expected.norm())
            assert cosine > 0.98 and abs(ratio - 1) < 0.1, (name, cosine, ratio)
