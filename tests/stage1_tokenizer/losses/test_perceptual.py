"""LPIPS: parity with the package, finite gradients, frozen, and verified weights."""

import hashlib
import warnings

import lpips
import pytest
import torch

from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.losses.perceptual import Lpips, unit_features

RANDOM = PerceptualConfig("squeeze", "random")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Return a state dict file in torchvision's format, and its digest."""
    net = Lpips(RANDOM).net
    state = {"features." + key.split(".", 1)[1]: value * 0.9 for key, value in net.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(3)}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_equals_the_lpips_package_for_ordinary_images():
    ours = Lpips(RANDOM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    theirs.net.load_state_dict(ours.net.state_dict())
    a, b = torch.rand(3, 3, 64, 64) * 2 - 1, torch.rand(3, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(ours(a, b), theirs(a, b).flatten(), atol=1e-6, rtol=1e-5)


def test_grey_is_repeated_and_equal_images_have_distance_zero():
    net = Lpips(RANDOM)
    a, b = torch.rand(2, 1, 64, 64) * 2 - 1, torch.rand(2, 1, 64, 64) * 2 - 1
    torch.testing.assert_close(net(a, b), net(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))
    assert net(a, a).abs().max() == 0 and net(a, b).min() > 0


def test_gradient_is_finite_where_all_features_are_zero():
    """The square root of a sum of squares has an infinite gradient at zero (PerceptualSimilarity#121, #69)."""
    net = Lpips(RANDOM)
    with torch.no_grad():
        for parameter in net.net.parameters():
            parameter.zero_()  # all features of all images are 0
    image = torch.full((1, 1, 64, 64), -1.0, requires_grad=True)
    distance = net(image, torch.full((1, 1, 64, 64), -1.0))
    (distance.sum() + image.sum()).backward()
    assert distance.item() == 0 and torch.isfinite(image.grad).all()


def test_zero_features_are_normalized_to_zero_with_a_finite_gradient():
    """A ReLU would mask a NaN gradient; the distance itself, and features without a ReLU, would not."""
    features = torch.zeros(1, 8, 2, 2)
    features[0, :, 0, 0] = torch.arange(1.0, 9.0)
    features.requires_grad_()
    unit = unit_features(features)
    (unit * torch.randn_like(unit)).sum().backward()
    assert torch.equal(unit[0, :, 1], torch.zeros(8, 2)) and torch.isfinite(features.grad).all()
    torch.testing.assert_close(unit[0, :, 0, 0].norm(), torch.tensor(1.0))


def test_black_image_has_a_finite_gradient():
    image = torch.full((1, 1, 64, 64), -1.0, requires_grad=True)
    Lpips(RANDOM)(image, torch.rand(1, 1, 64, 64)).sum().backward()
    assert torch.isfinite(image.grad).all() and image.grad.abs().sum() > 0


def test_stays_frozen_in_evaluation_mode_in_a_training_parent():
    parent = torch.nn.Sequential(Lpips(RANDOM)).train()
    assert parent.training and not any(module.training for module in parent[0].modules())
    assert not any(p.requires_grad for p in parent.parameters())


def test_random_weights_are_reproducible_and_keep_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = Lpips(RANDOM)
    assert torch.equal(torch.rand(1), expected)
    second = Lpips(RANDOM)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert "random" in first.name


def test_missing_weights_are_an_error_with_file_and_path(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=rf"squeezenet1_1-b8a52dc0\.pth.*{tmp_path}/checkpoints"):
        Lpips(PerceptualConfig("squeeze"))
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth.*/nowhere/vgg\.pth"):
        Lpips(PerceptualConfig("vgg", "/nowhere/vgg.pth"))


def test_weights_with_another_digest_are_refused(backbone):
    path, digest = backbone
    with pytest.raises(UserError, match=f"{digest[:16]}.*expected b8a52dc0"):
        Lpips(PerceptualConfig("squeeze", str(path)))
    net = Lpips(PerceptualConfig("squeeze", str(path), sha256=digest))
    torch.testing.assert_close(net.net.slice1[0].weight, Lpips(RANDOM).net.slice1[0].weight * 0.9)
    assert "random" not in net.name


def test_weights_of_another_net_are_refused(backbone):
    path, digest = backbone
    with pytest.raises(UserError, match="tensors"):
        Lpips(PerceptualConfig("alex", str(path), sha256=digest[:8]))


@pytest.mark.parametrize("net", ["squeeze", "alex"])
def test_features_are_those_of_the_package_and_the_distance_is_float32_under_autocast(net):
    distance = Lpips(PerceptualConfig(net, "random"))
    image, other = torch.rand(2, 1, 64, 64) * 2 - 1, torch.rand(2, 1, 64, 64) * 2 - 1
    taps = distance.net(distance.scaling_layer(image.expand(-1, 3, -1, -1)))
    assert all(map(torch.equal, distance._features(image), taps))
    exact = distance(image, other)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = distance(image, other)
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, exact)
    torch.testing.assert_close(coarse, exact, atol=1e-4, rtol=0.02)
