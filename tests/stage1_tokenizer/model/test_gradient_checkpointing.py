"""Gradient checkpointing: identical results with less memory."""

import copy

import torch
from safetensors.torch import load_file

from medunifier.shared.command import run_command
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.train import main
from tests.stage1_tokenizer.conftest import SIZE, TINY
from tests.stage1_tokenizer.training.test_train import losses, write_config


def forward_backward(model, images):
    """Return gradients and output of a pass with dropout, and the bytes saved for the backward pass."""
    saved = {}

    def save(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        output = model(images)
    # As in the training step: two gradients at the last layer for the adaptive weight, then the backward pass.
    for _ in range(2):
        torch.autograd.grad(output.reconstruction.square().mean(), model.last_layer, retain_graph=True)
    (output.reconstruction.square().mean() + sum(output.losses.values())).backward()
    return {name: p.grad for name, p in model.named_parameters()}, output.reconstruction, sum(saved.values())


def test_gradients_are_bitwise_equal_and_less_memory_is_used():
    model = VQGAN({**TINY, "attn_resolutions": [8], "dropout": 0.2, "num_res_blocks": 2}).train()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing()
    images = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    expected, output, memory = forward_backward(model, images)
    gradients, checkpointed_output, checkpointed_memory = forward_backward(checkpointed, images)
    assert torch.equal(output, checkpointed_output)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert gradients["encoder.conv_in.weight"].abs().sum() > 0
    assert checkpointed_memory < 0.6 * memory


def test_output_without_gradients_is_unchanged():
    model = VQGAN(TINY).eval()
    images = torch.rand(1, 1, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        expected = model(images).reconstruction.clone()
        model.gradient_checkpointing()
        assert torch.equal(model(images).reconstruction, expected)


def test_training_with_checkpointing_equals_training_without(finished_run, image_shards, tmp_path):
    config = write_config(tmp_path, image_shards, tmp_path / "checkpointed")
    assert run_command(main, ["--config", str(config), "--gradient_checkpointing"]) == 0
    runs = finished_run[1], tmp_path / "checkpointed"
    assert losses(runs[0]) == losses(runs[1])
    expected, weights = (load_file(run / "tokenizer" / "model.safetensors") for run in runs)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
