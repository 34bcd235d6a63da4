"""A frozen net whose features the quantized features are aligned with: loaded from local files, never downloaded."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medunifier.shared.artifacts import read_json, sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.files.weights import check_weight_file
from medunifier.shared.metrics.images.feature_nets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    densenet121,
    load_exactly,
    normalisation,
    state_dict_of,
    vision_model,
)
from medunifier.stage1_tokenizer.config import SemanticTeacherConfig
from medunifier.stage1_tokenizer.losses.semantic.efficientnet_lite import HEAD, EfficientNetLite

SIZE = 224
"""Side of a teacher's images whose files state none."""
XRV_RANGE = 1024.0
"""torchxrayvision scales images to [-1024, 1024], black to white."""


class Teacher(nn.Module):
    """(B, 1 or 3, H, W) images in [-1, 1] -> (B, C, h, w) float32 features on the grid of the codes.

    Images are resized to the teacher's size and normalized as its files state; its features are then resized to the
    grid (both bilinear, anti-aliased).

    Args:
        config: kind, files and checksum.
        grid: (h, w).

    Attributes:
        dim: channels of the features, C.

    Raises:
        UserError: if the files are missing (naming them), have another checksum, do not fit the kind, or the net
            cannot process images of this size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SemanticTeacherConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        path = Path(config.path)
        weights = _checked(config, path)
        self.net, self._features, size, mean, std = _LOADERS[config.kind](path)
        self.name = f"{config.kind}, {weights.name}, SHA-256 {config.sha256.lower()[:12]}"
        self.grid, self.size = grid, config.size or size
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.requires_grad_(False)
        self.train(False)
        try:
            self.dim = self(torch.zeros(1, 1, self.size, self.size)).shape[1]
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:  # of foreign code, which any may be
            raise UserError(
                f"{path} cannot process images of {self.size} pixels as loss.semantic.teacher.kind {config.kind}: "
                f"{' '.join(str(error).split())[:200]}; check kind and size"
            ) from error

    def train(self, mode: bool = True) -> "Teacher":
        """Ignore ``mode``: a parent's ``train()`` would enable dropout and batch statistics."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = images.mean(dim=1, keepdim=True) * 0.5 + 0.5
        if x.shape[-1] != self.size:
            x = interpolate(x, (self.size, self.size), mode="bilinear", antialias=True).clamp(0, 1)
        features = self._features(self.net, (x - self.mean) / self.std).float()
        return features if features.shape[-2:] == self.grid else _resized(features, self.grid)


def _resized(features: Tensor, grid: tuple[int, int]) -> Tensor:
    return interpolate(features, grid, mode="bilinear", antialias=True)


Loaded = tuple[nn.Module, Callable[[Any, Tensor], Tensor], int, Tensor, Tensor]
"""Net, its features (B, C, h, w) of normalized images, side of its images, mean and deviation (1, C, 1, 1)."""


def _checked(config: SemanticTeacherConfig, path: Path) -> Path:
    """Return the file of the weights if it exists and has the expected checksum."""
    weights = path / "model.safetensors" if config.kind == "transformers" else path
    if not weights.is_file():
        raise UserError(
            f"weights of the teacher ({config.kind}) not found at {weights}: put {_FILES[config.kind]} there or pass "
            "its path with --loss.semantic.teacher.path; nothing is downloaded"
        )
    check_weight_file(weights)
    found = sha256_file(weights)
    if not config.sha256:
        raise UserError(f"loss.semantic.teacher.sha256 must identify the weights: {weights} has SHA-256 {found}")
    if not found.startswith(config.sha256.lower()):
        raise UserError(
            f"{weights} has SHA-256 {found[:16]}…, expected {config.sha256[:16]}…: it is a different file"
        )
    return weights


def _densenet121(path: Path) -> Loaded:
    net, grey = densenet121(path)
    if grey:  # (x - 0.5) / (0.5 / 1024) lies in [-1024, 1024]
        mean, std = torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.5 / XRV_RANGE)
    else:
        mean, std = _imagenet()
    return net, lambda net, x: nn.functional.relu(net.features(x)), SIZE, mean, std


def _efficientnet_lite(path: Path) -> Loaded:
    state = {key: value for key, value in state_dict_of(path).items() if not key.startswith(HEAD)}
    try:
        net = EfficientNetLite(state)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} holds no EfficientNet-Lite with timm's names: {error!r}") from None
    load_exactly(net, state, path)
    mean, std = _imagenet()
    if net.channels == 1:  # as timm adapts a net to one channel, the mean of three
        mean, std = mean.mean(dim=1, keepdim=True), std.mean(dim=1, keepdim=True)
    return net, lambda net, x: net(x), SIZE, mean, std


def _imagenet() -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def _transformers(path: Path) -> Loaded:
    model = vision_model(path)
    options = {}
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = True  # ViT; DINOv2 always does

    def features(net: Any, x: Tensor) -> Tensor:
        states: Tensor = net(pixel_values=x, **options).last_hidden_state
        if states.ndim == 4:  # of a convolutional net
            return states
        patch = net.config.patch_size
        side = x.shape[-1] // int(patch[0] if isinstance(patch, list | tuple) else patch)
        patches = states[:, states.shape[1] - side * side :]  # class and register tokens come first
        return patches.transpose(1, 2).unflatten(2, (side, side))

    mean, std = normalisation(path)
    channels = int(getattr(model.config, "num_channels", 3))
    return model, features, _stated_size(path, model.config), mean[:, :channels], std[:, :channels]


def _stated_size(folder: Path, config: Any) -> int:
    """Return the side that the folder's image processor crops or resizes to, else that of the model's training."""
    path = folder / "preprocessor_config.json"
    found = read_json(path, "an image processor") if path.is_file() else {}
    for value in (found.get("crop_size"), found.get("size"), getattr(config, "image_size", None)):
        if isinstance(value, Mapping):
            value = value.get("height", value.get("shortest_edge"))
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, int) and value > 0:
            return value
    return SIZE


_LOADERS: dict[str, Callable[[Path], Loaded]] = {
    "transformers": _transformers,
    "densenet121": _densenet121,
    "efficientnet_lite": _efficientnet_lite,
}
_FILES = {
    "transformers": "a model folder with config.json and model.safetensors (such as microsoft/rad-dino)",
    "densenet121": "torchvision's densenet121-a639ec97.pth or torchxrayvision's weights saved as a state dict",
    "efficientnet_lite": "a state dict of timm's efficientnet_lite0 to 4",
}
