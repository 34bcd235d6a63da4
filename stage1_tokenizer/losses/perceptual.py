"""LPIPS, the perceptual distance of Zhang et al. (2018), with the nets and lin layers of the ``lpips`` package.

The forward pass is our own, for two reasons: the package takes the root of a sum of squares whose gradient is
infinite where all features are zero (flat black borders of a radiograph), and it drops features in training.
The backbone's weights come from a file that is checked, or are random because the configuration says so.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.config import PerceptualConfig

PUBLISHED = {
    "vgg": ("vgg16-397923af.pth", (64, 128, 256, 512, 512)),
    "alex": ("alexnet-owt-7be5be79.pth", (64, 192, 384, 256, 256)),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", (64, 128, 256, 384, 384, 512, 512)),
}
"""Backbone -> torchvision's file, whose name carries the first eight digits of its SHA-256; widths of its taps."""

EPSILON = 1e-10
"""Inside the root: the gradient at zero features is zero, and features of ordinary size do not notice it."""

RANDOM_SEED = 20180624
"""Of `random` weights: every run and every evaluation measures with the same random net."""


class FrozenDistance(nn.Module):
    """A distance of image pairs by a net that never trains: (B, 1 or 3, H, W) twice, in [-1, 1] -> (B,).

    Attributes:
        name: of net and weights; without it a figure means nothing.
        figure: what its mean is called in a table of figures.
    """

    name: str
    figure: str

    def freeze(self) -> None:
        """Called when the weights are in place."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenDistance":
        """Stays in evaluation mode: a parent's ``train()`` would switch dropout and batch statistics on."""
        return super().train(False)


class Lpips(FrozenDistance):
    """Perceptual distance of image pairs. Frozen; in evaluation mode whatever its parent is told.

    Args:
        config: net and weights.

    Raises:
        UserError: if the weights are absent (it says which file to put where), are not the published ones, or
            do not fit the net.
    """

    figure = "lpips"

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        weights = None if config.weights == "random" else _weights_path(config)
        # Imported here: the package brings in torchvision, which nobody needs who only encodes.
        from lpips import NetLinLayer, ScalingLayer
        from lpips import pretrained_networks as networks

        self.name = f"{config.net}, {'random' if config.weights == 'random' else 'ImageNet'} weights"
        build = {"vgg": networks.vgg16, "alex": networks.alexnet, "squeeze": networks.squeezenet}[config.net]
        self.scaling_layer = ScalingLayer()
        widths = PUBLISHED[config.net][1]
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision on the package's old spelling of "no weights"
            torch.manual_seed(RANDOM_SEED)
            self.net = build(pretrained=False, requires_grad=False)
            for number, width in enumerate(widths):
                setattr(self, f"lin{number}", NetLinLayer(width, use_dropout=True))  # dropout: for its key names
        self._taps = len(widths)
        self._load_lin_layers(config.net)
        if weights is not None:
            self._load_backbone(weights)
        self.freeze()

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) twice, in [-1, 1] -> (B,) distances, 0 for equal images. Grey is repeated here."""
        features = [self._features(x) for x in (images, others)]
        total = images.new_zeros(len(images), dtype=torch.float32)
        for number, (a, b) in enumerate(zip(*features, strict=True)):
            weight = getattr(self, f"lin{number}").model[-1].weight
            difference = (unit_features(a.float()) - unit_features(b.float())).square()
            total = total + nn.functional.conv2d(difference, weight.float()).mean(dim=(1, 2, 3))
        return total

    def _features(self, images: Tensor) -> tuple[Tensor, ...]:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        taps: tuple[Tensor, ...] = tuple(self.net(self.scaling_layer(images)))
        return taps

    def _load_lin_layers(self, net: str) -> None:
        import lpips

        path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
        state = torch.load(path, map_location="cpu", weights_only=True)
        for number in range(self._taps):
            getattr(self, f"lin{number}").model[-1].weight.data.copy_(state[f"lin{number}.model.1.weight"])

    def _load_backbone(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        # The package cuts torchvision's `features` into slices, whose layers keep their numbers.
        names = {key: "features." + key.split(".", 1)[1] for key in self.net.state_dict()}
        load_renamed(self.net, state, names, f"{path} does not fit the perceptual net")


def load_renamed(net: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], misfit: str) -> None:
    """Load weights that a file has under other names.

    Args:
        net: takes them.
        state: of the file; what ``names`` does not ask for is left over.
        names: the net's name -> the file's, for all of the net.
        misfit: begins the error.

    Raises:
        UserError: if a tensor is missing or has another shape.
    """
    own = net.state_dict()
    odd = [name for key, name in names.items() if name not in state or state[name].shape != own[key].shape]
    if odd:
        raise UserError(f"{misfit}: {len(odd)} tensors are missing or have another shape, such as {odd[0]}")
    net.load_state_dict({key: state[name] for key, name in names.items()}, strict=True)


def unit_features(features: Tensor) -> Tensor:
    """(B, C, H, W) divided by the norm over the channels at every place; finite, gradient too, where that is 0."""
    return features / (features.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()


def _weights_path(config: PerceptualConfig) -> Path:
    name = PUBLISHED[config.net][0]
    path = Path(config.weights) if config.weights else Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise UserError(
            f"weights of the perceptual net not found: put torchvision's {name} at {path}, or name its place with "
            "--loss.perceptual.weights FILE (evaluate: --perceptual.weights). Its name `random` means untrained "
            "weights, and --loss.perceptual.net none leaves the term out"
        )
    expected = config.sha256.lower() or name.removesuffix(".pth").rsplit("-", 1)[1]
    found = sha256_file(path)
    if not found.startswith(expected):
        raise UserError(
            f"{path} has SHA-256 {found[:16]}…, expected {expected}…: it is not {name}; fetch it again, or state its "
            "digest with --loss.perceptual.sha256 if it is meant"
        )
    return path


def build_perceptual(config: PerceptualConfig) -> FrozenDistance | None:
    """The perceptual net, or None for ``net: none``."""
    if config.net == "xrv":
        from medunifier.stage1_tokenizer.losses.radiograph_features import (
            RadiographFeatures,  # it builds on this file
        )

        return RadiographFeatures(config)
    return None if config.net == "none" else Lpips(config)
