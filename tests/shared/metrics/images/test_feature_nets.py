"""Feature nets: name, checksum, validated weights, and a one-line error without them."""

import numpy as np
import pytest
import torch
from torchvision.models import densenet121

from medunifier.shared.errors import UserError
from medunifier.shared.metrics.images.feature_nets import load_feature_net

IMAGES = np.random.default_rng(0).random((3, 40, 40)).astype(np.float32)


def test_the_random_net_is_reproducible_and_named_random():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = load_feature_net("random", device="cpu"), load_feature_net("random", device="cpu")
    assert (torch.get_rng_state() == before).all()
    assert a.sha256 == b.sha256 and len(a.sha256) == 64 and "random" in a.name
    features = a(IMAGES)
    assert features.shape == (3, 64) and np.allclose(features, b(IMAGES, batch_size=2), atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["inception_v3", "densenet121", "transformers"])
def test_nothing_is_downloaded(name, tmp_path):
    with pytest.raises(UserError, match="--feature_weights"):
        load_feature_net(name)
    with pytest.raises(UserError, match=f"{tmp_path}/none"):
        load_feature_net(name, str(tmp_path / "none"))


def test_invalid_calls_and_files_are_named(tmp_path):
    with pytest.raises(UserError, match="vgg.*random"):
        load_feature_net("vgg")
    with pytest.raises(UserError, match="random.*weights"):
        load_feature_net("random", "x.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pth"):
        load_feature_net("densenet121", str(tmp_path / "text.pth"))
    torch.save({"features.conv0.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="605 tensors"):
        load_feature_net("densenet121", str(tmp_path / "part.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth"):
        load_feature_net("densenet121", str(tmp_path / "list.pth"))
    with pytest.raises(UserError, match=f"{tmp_path}"):
        load_feature_net("transformers", str(tmp_path))


@pytest.mark.parametrize("grey", [False, True])
def test_densenet_reads_torchvisions_and_torchxrayvisions_files(grey, tmp_path):
    torch.manual_seed(0)
    net = densenet121(weights=None, num_classes=18 if grey else 1000).eval()
    if grey:
        net.features.conv0 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    # As both publish it: "denselayer1.norm.1.weight".
    old = {
        key.replace(".norm1.", ".norm.1.").replace(".conv1.", ".conv.1.").replace(".norm2.", ".norm.2.")
        .replace(".conv2.", ".conv.2."): value
        for key, value in net.state_dict().items()
    }  # fmt: skip
    assert any(".norm.1." in key for key in old)
    torch.save(old | ({"op_threshs": torch.zeros(18)} if grey else {}), tmp_path / "weights.pth")
    found = load_feature_net("densenet121", str(tmp_path / "weights.pth"), "cpu")
    images = torch.from_numpy(np.random.default_rng(1).random((1, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        if grey:
            x = (images[None] * 2 - 1) * 1024
        else:
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            x = (images[None].expand(-1, 3, -1, -1) - mean) / std
        expected = net.features(x).relu().mean(dim=(2, 3)).numpy()
    assert np.allclose(found(images.numpy()), expected, rtol=1e-3, atol=1e-5)
    assert ("torchxrayvision" in found.name) == grey and found.size == 224


def test_a_transformers_folder_gives_its_pooled_output(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    torch.manual_seed(0)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    net = load_feature_net("transformers", str(tmp_path), "cpu")
    images = np.random.default_rng(0).random((2, 28, 28)).astype(np.float32)
    x = (torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1) - 0.5) / 0.25
    with torch.inference_mode():
        expected = model(pixel_values=x).pooler_output.numpy()
    assert np.allclose(net(images), expected, atol=1e-5) and "dinov2" in net.name
