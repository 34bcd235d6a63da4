"""torch.compile: the same course, also where the adaptive weight differentiates at the last layer."""

from functools import partialmethod

import pytest
import torch
from torch import nn

from shared.command import run_command
from stage1_tokenizer.train import main
from tests.stage1_tokenizer.test_train import losses, write_config


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--recompute_activations"]], ids=["kept", "recomputed"])
def test_a_compiled_run_takes_the_course_of_the_plain_one(options, image_shards, tmp_path, monkeypatch):
    # Everything of the compiler but its code generation, which needs a C++ compiler and minutes.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    for name, more in (("plain", []), ("compiled", ["--compile", *options])):
        torch._dynamo.reset()
        config = write_config(tmp_path, image_shards, tmp_path / name, steps=6, checkpoint_every=6)
        assert run_command(main, ["--config", str(config), *more]) == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert any("adaptive_weight" in line for line in compiled)
    for mine, other in zip(compiled, plain, strict=True):
        for name in mine.keys() & {"l1", "codebook", "discriminator", "adaptive_weight", "validation/psnr"}:
            assert mine[name] == pytest.approx(other[name], rel=2e-3), (mine["step"], name)
