"""Teachers from local files: features on the code grid, the files' own preprocessing, errors that name the file."""

import json

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models import densenet121
from torchvision.models.mobilenetv2 import InvertedResidual

from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.config import SemanticTeacherConfig
from medunifier.stage1_tokenizer.losses.semantic.efficientnet_lite import STRIDES, EfficientNetLite
from medunifier.stage1_tokenizer.losses.semantic.teacher import Teacher
from tests.stage1_tokenizer.conftest import batch_of_blobs


def teacher_of(kind, path, grid=(4, 4), size=0, weights=None):
    digest = sha256_file(weights or path)
    return Teacher(SemanticTeacherConfig(1.0, kind, str(path), digest[:12], size), grid)


def save_dinov2(folder, registers=0, image_size=28):
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": image_size,
             "patch_size": 7}  # fmt: skip
    model = (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=registers, **sizes))
        if registers
        else Dinov2Model(Dinov2Config(**sizes))
    )
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("registers", [0, 3])
def test_vision_transformer_gives_its_patch_tokens_on_the_grid(registers, tmp_path):
    model = save_dinov2(tmp_path, registers)
    processor = {"image_mean": [0.53] * 3, "image_std": [0.26] * 3, "crop_size": {"height": 28, "width": 28}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    teacher = teacher_of("transformers", tmp_path, weights=tmp_path / "model.safetensors")
    images = batch_of_blobs(2, 28)
    found = teacher(images)
    with torch.no_grad():
        pixels = ((images + 1) / 2 - 0.53) / 0.26
        tokens = model(pixel_values=pixels.expand(-1, 3, -1, -1)).last_hidden_state
    assert teacher.dim == 16 and found.shape == (2, 16, 4, 4)
    for row, column in ((0, 0), (1, 3), (3, 2)):
        expected = tokens[:, 1 + registers + 4 * row + column]
        torch.testing.assert_close(found[:, :, row, column], expected, atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.train().net.training


def test_images_and_features_are_resized_and_the_size_can_be_set(tmp_path):
    save_dinov2(tmp_path)
    weights = tmp_path / "model.safetensors"
    own, larger = (
        teacher_of("transformers", tmp_path, weights=weights),
        teacher_of("transformers", tmp_path, size=56, weights=weights),
    )
    images = batch_of_blobs(2, 56)
    assert (own.size, larger.size) == (28, 56)
    assert own(images).shape == larger(images).shape == (2, 16, 4, 4)
    eight = teacher_of("transformers", tmp_path, grid=(8, 8), size=56, weights=weights)(images)
    expected = interpolate(eight, (4, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(larger(images), expected, atol=1e-5, rtol=1e-4)


def test_densenet_of_one_channel_gets_torchxrayvisions_range(tmp_path):
    net = densenet121(weights=None, num_classes=18).eval()
    net.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    torch.save(net.state_dict(), tmp_path / "xrv.pt")
    images = batch_of_blobs(1, 64)
    found = teacher_of("densenet121", tmp_path / "xrv.pt", grid=(2, 2), size=64)(images)
    with torch.no_grad():
        expected = net.features(images * 1024).relu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def lite_from_torchvision():
    """Return a narrow EfficientNet-Lite made of torchvision's inverted residuals, and its tensors by timm's names."""
    widths, names = [8, 8, 12, 12, 16, 16, 24, 24], {"conv.0.0": "conv_pw", "conv.0.1": "bn1", "conv.1.0": "conv_dw",
             "conv.1.1": "bn2", "conv.2": "conv_pwl", "conv.3": "bn3"}  # fmt: skip
    without = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    blocks, state = [], {}
    for name, module in (("conv_stem", stem[0]), ("bn1", stem[1])):
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for stage, stride in enumerate(STRIDES):
        for number in range(2 if stage == 2 else 1):
            a, b = widths[stage + bool(number)], widths[stage + 1]
            block = InvertedResidual(a, b, stride if number == 0 else 1, 1 if stage == 0 else 3)
            for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
                nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.weight)
            blocks.append(block)
            for old, new in (without if stage == 0 else names).items():
                part = block.get_submodule(old).state_dict()
                state |= {f"blocks.{stage}.{number}.{new}.{key}": value for key, value in part.items()}
    state |= {"conv_head.weight": torch.zeros(32, 24, 1, 1), "bn2.weight": torch.zeros(32),
              "classifier.weight": torch.zeros(5, 32)}  # fmt: skip
    return nn.Sequential(stem, *blocks).eval(), state


def test_efficientnet_lite_equals_torchvisions_blocks(tmp_path):
    net, state = lite_from_torchvision()
    torch.save(state, tmp_path / "lite.pth")
    teacher = teacher_of("efficientnet_lite", tmp_path / "lite.pth", grid=(2, 2), size=64)
    images = batch_of_blobs(2, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = net(((images + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    torch.testing.assert_close(teacher(images), expected, atol=1e-4, rtol=1e-4)


def test_efficientnet_lite0_has_the_published_number_of_parameters():
    """4.65 million with classifier (timm's table), of which 1,280 x 320 + 2 x 1,280 + 1,281,000 follow the blocks."""
    stages = (
        (1, 3, 1, 16),
        (2, 3, 6, 24),
        (2, 5, 6, 40),
        (3, 3, 6, 80),
        (3, 5, 6, 112),
        (4, 5, 6, 192),
        (1, 3, 6, 320),
    )
    shapes, width = {"conv_stem": (32, 3, 3, 3)}, 32
    for stage, (count, kernel, expansion, out) in enumerate(stages):
        for number in range(count):
            wide, prefix = width * expansion, f"blocks.{stage}.{number}"
            if expansion > 1:
                shapes |= {f"{prefix}.conv_pw": (wide, width, 1, 1), f"{prefix}.conv_pwl": (out, wide, 1, 1)}
            else:
                shapes[f"{prefix}.conv_pw"] = (out, wide, 1, 1)
            shapes[f"{prefix}.conv_dw"] = (wide, 1, kernel, kernel)
            width = out
    with torch.device("meta"):
        net = EfficientNetLite({f"{name}.weight": torch.empty(shape) for name, shape in shapes.items()})
    count = sum(p.numel() for p in net.parameters()) + 1280 * 320 + 2 * 1280 + 1_281_000
    assert round(count / 1e6, 2) == 4.65


def test_errors_name_the_file_and_the_remedy(tmp_path):
    save_dinov2(tmp_path / "vit")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    digest = sha256_file(tmp_path / "other.pt")
    vit = sha256_file(tmp_path / "vit" / "model.safetensors")
    cases = [
        (("transformers", tmp_path / "none", "0"), "none/model.safetensors"),
        (("densenet121", tmp_path / "none.pt", "0"), "none.pt"),
        (("densenet121", tmp_path / "other.pt", ""), digest),
        (("densenet121", tmp_path / "other.pt", "0000"), "0000"),
        (("densenet121", tmp_path / "other.pt", digest[:8]), "other.pt"),
        (("efficientnet_lite", tmp_path / "other.pt", digest), "other.pt"),
        (("transformers", tmp_path / "vit", vit, 3), "3 pixels"),
    ]
    for (kind, path, sha256, *size), part in cases:
        with pytest.raises(UserError, match=part) as caught:
            Teacher(SemanticTeacherConfig(1.0, kind, str(path), sha256, *size), (4, 4))
        assert "\n" not in str(caught.value)
