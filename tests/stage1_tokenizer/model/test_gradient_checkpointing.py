"""Gradient checkpointing: the same numbers from less memory."""

import copy

import torch
from safetensors.torch import load_file

from medunifier.shared.command import run_command
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.train import main
from tests.stage1_tokenizer.conftest import SIZE, TINY
from tests.stage1_tokenizer.training.test_train import losses, write_config


def one_pass(model, images):
    """Gradients of a pass with dropout, its output, and how many numbers it kept for the way back."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)
    # As the training step does: twice at the last layer for the adaptive weight, then the whole.
    for _ in range(2):
        torch.autograd.grad(output.reconstruction.square().mean(), model.last_layer, retain_graph=True)
    (output.reconstruction.square().mean() + sum(output.losses.values())).backward()
    return {name: p.grad for name, p in model.named_parameters()}, output.reconstruction, sum(kept.values())


def test_gradients_are_equal_to_the_last_bit_and_less_is_kept():
    model = VQGAN({**TINY, "attn_resolutions": [8], "dropout": 0.2, "num_res_blocks": 2}).train()
    saving = copy.deepcopy(model)
    saving.gradient_checkpointing()
    images = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    (gradients, output, kept), (theirs, their_output, their_kept) = (one_pass(m, images) for m in (model, saving))
    assert torch.equal(output, their_output)
    assert all(torch.equal(gradients[name], theirs[name]) for name in gradients)
    assert gradients["encoder.conv_in.weight"].abs().sum() > 0
    assert their_kept < 0.6 * kept


def test_without_gradients_nothing_is_recomputed():
    model = VQGAN(TINY).eval()
    images = torch.rand(1, 1, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        expected = model(images).reconstruction.clone()
        model.gradient_checkpointing()
        assert torch.equal(model(images).reconstruction, expected)


def test_a_run_with_it_is_the_run_without_it(whole, image_shards, tmp_path):
    config = write_config(tmp_path, image_shards, tmp_path / "saving")
    assert run_command(main, ["--config", str(config), "--gradient_checkpointing"]) == 0
    runs = whole[1], tmp_path / "saving"
    assert losses(runs[0]) == losses(runs[1])
    mine, theirs = (load_file(run / "tokenizer" / "model.safetensors") for run in runs)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
