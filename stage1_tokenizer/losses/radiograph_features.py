"""A perceptual distance by a net that knows radiographs: torchxrayvision's DenseNet-121 (Cohen et al., 2022).

LPIPS' nets learned cats and cars; this one learned findings on several hundred thousand chest radiographs. Its
weights are published as a pickled module, which is not read here: a pickle runs what it likes. They are saved once
as a table of tensors (docs/tokenizer.md says how), and that file is named with its checksum.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.losses.perceptual import RANDOM_SEED, FrozenDistance, load_renamed, unit_features

RANGE = 1024.0
"""Black is -1024 and white 1024 in torchxrayvision's training."""

TAPS = ("relu0", "denseblock1", "denseblock2", "denseblock3", "norm5")
"""Layers whose output is compared: 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution."""


class RadiographFeatures(FrozenDistance):
    """Mean squared distance of unit-length features at five depths: 0 for equal images, at most 4.

    Images are taken at their own size (the net was trained at 224 pixels), three channels as their mean.

    Args:
        config: weights and checksum; ``net`` is xrv.

    Raises:
        UserError: if the weights are absent, are not those of the checksum, or do not fit the net.
    """

    figure = "radiograph_distance"

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
            difference = unit_features(a.float()) - unit_features(b.float())
            total = total + difference.square().sum(dim=1).mean(dim=(1, 2))
        return total / len(TAPS)

    def _features(self, images: Tensor) -> list[Tensor]:
        x, found = images.mean(dim=1, keepdim=True) * RANGE, []
        for name, layer in self.net.named_children():
            x = layer(x)
            if name in TAPS:
                found.append(x)
        return found


def _network() -> nn.Module:
    """The convolutional part, of one channel."""
    from torchvision.models import densenet121

    net: nn.Module = densenet121(weights=None).features
    net.conv0 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    # Not in place, since what is compared must stay as it was.
    net.relu0 = nn.ReLU()
    return net


def _load(net: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler, its zip reader and the disk raise
        raise UserError(
            f"{path} is no table of tensors: {' '.join(str(error).split())[:120]}; torchxrayvision's own file is a "
            "pickled module, docs/tokenizer.md says how its weights are saved"
        ) from None
    names = {key: f"features.{key}" for key in net.state_dict()}
    load_renamed(net, state, names, f"{path} does not fit the net of radiographs")


def _checked_path(config: PerceptualConfig) -> Path:
    path = Path(config.weights)
    if not config.weights or not path.is_file():
        raise UserError(
            f"weights of torchxrayvision's DenseNet-121 not found at {config.weights or '(no path given)'}: name "
            "their file with --loss.perceptual.weights (evaluate: --perceptual.weights); nothing is downloaded, and "
            "docs/tokenizer.md says how to save it (`random` = untrained weights)"
        )
    found = sha256_file(path)
    if not config.sha256:
        raise UserError(f"state which weights are meant: {path} has perceptual.sha256 {found}")
    if not found.startswith(config.sha256.lower()):
        raise UserError(f"{path} has SHA-256 {found[:16]}…, expected {config.sha256[:16]}…: it is another file")
    return path
