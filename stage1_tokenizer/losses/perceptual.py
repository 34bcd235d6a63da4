"""LPIPS, the perceptual distance of Zhang et al. (2018), with the nets and lin layers of the ``lpips`` package.

The forward pass is reimplemented for three reasons: the package takes the square root of a sum of squares, whose
gradient is infinite where all features are zero (flat black borders of a radiograph); it applies dropout in training
mode; and it stores normalized float32 copies of all features, where here a compiler reads the features once. The
backbone's weights are read from a file whose checksum is verified, or are random if the configuration requests it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.files.weights import check_weight_file
from medunifier.stage1_tokenizer.config import PerceptualConfig

PUBLISHED = {
    "vgg": ("vgg16-397923af.pth", (64, 128, 256, 512, 512)),
    "alex": ("alexnet-owt-7be5be79.pth", (64, 192, 384, 256, 256)),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", (64, 128, 256, 384, 384, 512, 512)),
}
"""Backbone -> torchvision's file, whose name ends in the first eight digits of its SHA-256; channels of its feature
maps."""

EPSILON = 1e-10
"""Added under the square root: the gradient at zero features becomes zero; ordinary features are unaffected."""

RANDOM_SEED = 20180624
"""Seed of `random` weights, so that every run and every evaluation uses the same random net."""


class PerceptualDistance(nn.Module):
    """Distance between image pairs by a frozen net: (B, 1 or 3, H, W) twice, in [-1, 1] -> (B,).

    Attributes:
        name: net and weights. Values are comparable only with the same name.
        metric: name of the mean distance in results.
    """

    name: str
    metric: str

    def loss(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the mean distance, scalar. Compiled in training, where all batches have one shape."""
        mean: Tensor = self(images, others).mean()
        return mean

    def freeze(self) -> None:
        """Disable gradients and set evaluation mode. Call after the weights are loaded."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Ignore ``mode``: a parent's ``train()`` would enable dropout and batch statistics."""
        return super().train(False)


class Lpips(PerceptualDistance):
    """LPIPS distance between image pairs.

    Args:
        config: net and weights.

    Raises:
        UserError: if the weights are missing (naming the file and where to put it), are not the published ones, or
            do not fit the net.
    """

    metric = "lpips"

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        weights = None if config.weights == "random" else _weights_path(config)
        # Imported here: the package imports torchvision, which is not needed for encoding.
        from lpips import NetLinLayer, ScalingLayer
        from lpips import pretrained_networks as networks

        self.name = f"{config.net}, {'random' if config.weights == 'random' else 'ImageNet'} weights"
        build = {"vgg": networks.vgg16, "alex": networks.alexnet, "squeeze": networks.squeezenet}[config.net]
        self.scaling_layer = ScalingLayer()
        widths = PUBLISHED[config.net][1]
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision deprecates the package's `pretrained=False`
            torch.manual_seed(RANDOM_SEED)
            self.net = build(pretrained=False, requires_grad=False)
            for number, width in enumerate(widths):
                setattr(self, f"lin{number}", NetLinLayer(width, use_dropout=True))  # with dropout, for the key names
        self._taps = len(widths)
        self._load_lin_layers(config.net)
        if weights is not None:
            self._load_backbone(weights)
        self.freeze()

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) twice, in [-1, 1] -> (B,) distances, 0 for equal images. Grey is repeated 3 times."""
        # Two passes, not one over both: an image without gradient then needs no backward pass.
        features = [self._features(x) for x in (images, others)]
        total = images.new_zeros(len(images), dtype=torch.float32)
        for number, (a, b) in enumerate(zip(*features, strict=True)):
            weight = getattr(self, f"lin{number}").model[-1].weight.float()  # (1, C, 1, 1)
            difference = unit_features(a) - unit_features(b)
            total = total + (weight * difference.square()).sum(dim=1).mean(dim=(1, 2))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        x, taps = self.scaling_layer(images), []
        for number in range(1, self._taps + 1):
            x = self.net.get_submodule(f"slice{number}")(x)
            taps.append(x)
        return taps

    def _load_lin_layers(self, net: str) -> None:
        import lpips

        path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
        state = torch.load(path, map_location="cpu", weights_only=True)
        for number in range(self._taps):
            getattr(self, f"lin{number}").model[-1].weight.data.copy_(state[f"lin{number}.model.1.weight"])

    def _load_backbone(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        # The package splits torchvision's `features` into slices; the layers keep their indices.
        names = {key: "features." + key.split(".", 1)[1] for key in self.net.state_dict()}
        load_renamed(self.net, state, names, f"{path} does not match the perceptual net")


def load_renamed(net: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], misfit: str) -> None:
    """Load weights whose names in the file differ from the net's.

    Args:
        net: the net to load into.
        state: the file's state dict; keys that are not in ``names`` are ignored.
        names: name in the net -> name in the file, for every tensor of the net.
        misfit: start of the error message.

    Raises:
        UserError: if a tensor is missing or has another shape.
    """
    expected = net.state_dict()
    wrong = [name for key, name in names.items() if name not in state or state[name].shape != expected[key].shape]
    if wrong:
        raise UserError(f"{misfit}: {len(wrong)} tensors are missing or have another shape, such as {wrong[0]}")
    net.load_state_dict({key: state[name] for key, name in names.items()}, strict=True)


def unit_features(features: Tensor) -> Tensor:
    """Normalize (B, C, H, W) over the channels -> float32. Value and gradient are finite where the norm is 0."""
    features = features.float()
    return features / (features.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()


def _weights_path(config: PerceptualConfig) -> Path:
    name = PUBLISHED[config.net][0]
    path = Path(config.weights) if config.weights else Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise UserError(
            f"weights of the perceptual net not found: put torchvision's {name} at {path}, or pass its path with "
            "--loss.perceptual.weights FILE (evaluate: --perceptual.weights). `--loss.perceptual.weights random` "
            "uses untrained weights, and --loss.perceptual.net none omits the loss"
        )
    check_weight_file(path)
    expected = config.sha256.lower() or name.removesuffix(".pth").rsplit("-", 1)[1]
    found = sha256_file(path)
    if not found.startswith(expected):
        raise UserError(
            f"{path} has SHA-256 {found[:16]}…, expected {expected}…: it is not {name}; download it again, "
            "or pass its digest with --loss.perceptual.sha256 if this file is intended"
        )
    return path


def build_perceptual(config: PerceptualConfig) -> PerceptualDistance | None:
    """Return the perceptual distance, or None for ``net: none``."""
    if config.net == "xrv":
        from medunifier.stage1_tokenizer.losses.radiograph_features import (
            RadiographFeatures,  # it imports this module
        )

        return RadiographFeatures(config)
    return None if config.net == "none" else Lpips(config)
