"""Perceptual distance on features of torchxrayvision's DenseNet-121 (Cohen et al., 2022).

The nets of LPIPS are trained on natural images (ImageNet), this one on the findings of several hundred thousand chest
radiographs. Its weights are published as a pickled module, which is not loaded here, since a pickle can execute code.
Save them once as a state dict (see docs/tokenizer.md) and pass that file with its checksum.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.files.weights import check_weight_file
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.losses.perceptual import RANDOM_SEED, PerceptualDistance, load_renamed, unit_features

RANGE = 1024.0
"""torchxrayvision scales images to [-1024, 1024], black to white."""

TAPS = ("relu0", "denseblock1", "denseblock2", "denseblock3", "norm5")
"""Layers whose outputs are compared, at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution."""


class RadiographFeatures(PerceptualDistance):
    """Mean squared distance of normalized features at five depths: 0 for equal images, at most 4.

    Images are not resized (the net was trained at 224 pixels); three channels are averaged.

    Args:
        config: weights and checksum; ``net`` is xrv.

    Raises:
        UserError: if the weights are missing, do not match the checksum, or do not fit the net.
    """

    metric = "radiograph_distance"

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        if config.weights == "random":
            self.name = "xrv densenet121, random weights"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(RANDOM_SEED)
                self.net = _network()
        else:
            path = _checked_path(config)
            self.name = f"xrv densenet121, {path.name}, SHA-256 {config.sha256.lower()[:12]}"
            self.net = _network()
            _load(self.net, path)
        self.freeze()

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) twice, in [-1, 1] -> (B,) distances, 0 for equal images."""
        total = images.new_zeros(len(images), dtype=torch.float32)
        for a, b in zip(self._features(images), self._features(others), strict=True):
            difference = unit_features(a) - unit_features(b)
            total = total + difference.square().sum(dim=1).mean(dim=(1, 2))
        return total / len(TAPS)

    def _features(self, images: Tensor) -> list[Tensor]:
        x, features = images.mean(dim=1, keepdim=True) * RANGE, []
        for name, layer in self.net.named_children():
            x = layer(x)
            if name in TAPS:
                features.append(x)
        return features


def _network() -> nn.Module:
    """Return the convolutional part of DenseNet-121 for one input channel."""
    from torchvision.models import densenet121

    net: nn.Module = densenet121(weights=None).features
    net.conv0 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    # Not in place, since the next layer would overwrite the compared features.
    net.relu0 = nn.ReLU()
    return net


def _load(net: nn.Module, path: Path) -> None:
    check_weight_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # from the unpickler, the zip reader or the disk
        raise UserError(
            f"{path} is not a state dict: {' '.join(str(error).split())[:120]}; torchxrayvision publishes a pickled "
            "module, and docs/tokenizer.md shows how to save its weights"
        ) from None
    names = {key: f"features.{key}" for key in net.state_dict()}
    load_renamed(net, state, names, f"{path} does not match torchxrayvision's DenseNet-121")


def _checked_path(config: PerceptualConfig) -> Path:
    path = Path(config.weights)
    if not config.weights or not path.is_file():
        raise UserError(
            f"weights of torchxrayvision's DenseNet-121 not found at {config.weights or '(no path given)'}: pass "
            "their file with --loss.perceptual.weights (evaluate: --perceptual.weights); nothing is downloaded, and "
            "docs/tokenizer.md shows how to save it (`random` = untrained weights)"
        )
    found = sha256_file(path)
    if not config.sha256:
        raise UserError(f"perceptual.sha256 must identify the weights: {path} has perceptual.sha256 {found}")
    if not found.startswith(config.sha256.lower()):
        raise UserError(f"{path} has SHA-256 {found[:16]}…, expected {config.sha256[:16]}…: it is a different file")
    return path
