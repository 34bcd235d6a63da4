"""The perceptual distance on radiograph features: layers, weight file, errors."""

import hashlib

import pytest
import torch
from torchvision.models import densenet121

from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.losses.perceptual import build_perceptual
from medunifier.stage1_tokenizer.training.fidelity import Fidelity

RANDOM = PerceptualConfig("xrv", "random")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a DenseNet with one channel and 18 outputs as in torchxrayvision, its weight file and digest."""
    torch.manual_seed(3)
    net = densenet121(weights=None, num_classes=18).eval()
    net.features.conv0 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    path = tmp_path_factory.mktemp("xrv") / "xrv.pt"
    torch.save(net.state_dict() | {"op_threshs": torch.zeros(18)}, path)
    return net, path, hashlib.sha256(path.read_bytes()).hexdigest()


def image_pair(size=64):
    return torch.rand(2, 1, size, size) * 2 - 1, torch.rand(2, 1, size, size) * 2 - 1


def test_distance_is_that_of_the_layers_features_in_the_nets_range(saved):
    net, path, digest = saved
    ours = build_perceptual(PerceptualConfig("xrv", str(path), digest[:16]))
    assert "xrv.pt" in ours.name and digest[:12] in ours.name
    outputs = {}
    hooks = [getattr(net.features, name).register_forward_hook(
        lambda _, __, out, name=name: outputs.setdefault(name, []).append(out.clone()))
        for name in ("relu0", "denseblock1", "denseblock2", "denseblock3", "norm5")]  # fmt: skip
    a, b = image_pair()
    with torch.no_grad():
        net(a * 1024), net(b * 1024)
        distance = ours(a, b)
    for hook in hooks:
        hook.remove()
    cosines = [torch.nn.functional.cosine_similarity(x, y, dim=1).mean((1, 2)) for x, y in outputs.values()]
    torch.testing.assert_close(distance, sum(2 - 2 * c for c in cosines) / 5, atol=1e-4, rtol=1e-3)


def test_equal_images_have_distance_zero_and_grey_equals_three_channels():
    net = build_perceptual(RANDOM)
    a, b = image_pair()
    assert net(a, a).abs().max() == 0 and net(a, b).min() > 0
    torch.testing.assert_close(net(a, b), net(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))


def test_black_image_has_a_finite_gradient_and_the_net_is_frozen():
    net = torch.nn.Sequential(build_perceptual(RANDOM)).train()[0]
    image = torch.full((1, 1, 64, 64), -1.0, requires_grad=True)
    net(image, torch.rand(1, 1, 64, 64)).sum().backward()
    assert torch.isfinite(image.grad).all() and image.grad.abs().sum() > 0
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad for p in net.parameters())


def test_missing_unidentified_wrong_or_pickled_files_are_refused(saved, tmp_path):
    net, path, digest = saved
    for weights, sha256, message in [
        ("", "", "path"),
        ("/nowhere.pt", digest, r"/nowhere\.pt"),
        (str(path), "", f"sha256 {digest}"),
        (str(path), "00ff", f"SHA-256 {digest[:16]}.*expected 00ff"),
    ]:
        with pytest.raises(UserError, match=message):
            build_perceptual(PerceptualConfig("xrv", weights, sha256))
    torch.save(net, tmp_path / "module.pt")
    torch.save({"features.conv0.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "colours.pt")
    for name, message in (("module.pt", "module"), ("colours.pt", "tensors")):
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        with pytest.raises(UserError, match=message):
            build_perceptual(PerceptualConfig("xrv", str(tmp_path / name), digest))


def test_mean_distance_is_not_reported_as_lpips():
    fidelity = Fidelity(4, 64, build_perceptual(RANDOM))
    a, b = image_pair()
    fidelity.add(a, b, torch.zeros(2, 2, 2, dtype=torch.int64))
    metrics = fidelity.figures()
    assert metrics["radiograph_distance"] > 0 and "lpips" not in metrics
