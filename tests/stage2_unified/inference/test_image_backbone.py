"""The image backbone for fine-tuning: it returns the model's hidden states, is a copy, and can be re-initialised."""

import numpy as np
import torch

from medunifier.stage2_unified.inference.image_backbone import ImageBackbone


def test_hidden_states_equal_those_of_the_models_prefix(model, batch):
    backbone = ImageBackbone(model.eval()).eval()
    codes, view = batch.images.codes[:, 0], batch.images.view[:, 0]
    whole, cells = backbone(codes, view)
    assert torch.allclose(whole, model.encode_images(batch.images).hidden, atol=1e-5)
    assert cells.shape == (len(batch), codes.shape[1], backbone.width)
    # The hidden state of a code depends on it and on the codes before it only.
    changed = codes.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 16
    moved = (backbone(changed, view)[1] - cells).abs().amax(dim=(0, 2))
    assert moved[:3].max() < 1e-5 < moved[3:].min()


def test_codes_and_views_become_model_inputs(model):
    codes = np.arange(12).reshape(2, 2, 3).astype(np.uint16)
    ids, view = ImageBackbone(model).inputs(codes, ["PA", "AP"])
    assert ids.tolist() == [list(range(6)), list(range(6, 12))] and ids.dtype == torch.int64
    assert view.tolist() == [model.vocabulary.view("PA"), model.vocabulary.view("AP")]


def test_training_the_backbone_does_not_change_the_model(model, batch):
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backbone = ImageBackbone(model)
    codes, view = batch.images.codes[:, 0], batch.images.view[:, 0]
    whole, cells = backbone(codes, view)
    (whole.sum() + cells.sum()).backward()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(backbone(codes, view)[0], whole)


def test_random_weights_depend_on_the_seed_and_keep_the_codebook(model, batch):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b, c = (ImageBackbone(model, seed).eval() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.model.codebook, model.codebook)
    codes, view = batch.images.codes[:, 0], batch.images.view[:, 0]
    states = [x(codes, view)[0] for x in (a, b, c, ImageBackbone(model).eval())]
    assert torch.equal(states[0], states[1])
    assert not torch.allclose(states[0], states[2]) and not torch.allclose(states[0], states[3])
