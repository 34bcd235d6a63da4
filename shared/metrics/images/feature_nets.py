"""Feature nets for Fréchet and kernel distances, each with the name and checksum that a figure needs.

Nothing is downloaded: weights are files of the user's, and the net without a file is one of random weights,
whose figures compare images of one project and no papers (Naeem et al., 2020, find random features of use
where images are far from ImageNet's).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medunifier.shared.artifacts import fingerprint, read_json, sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder
from medunifier.shared.files.weights import check_weight_file
from medunifier.shared.progress import Progress

RANDOM_SEED = 20200717
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FeatureNet:
    """A frozen net from grey images to features.

    Attributes:
        name: of architecture and weights.
        sha256: of the weights; two figures with the same one may be compared.
        size: side to which images are resized before (bilinear, anti-aliased).
        forward: (B, 1, size, size) in [0, 1] -> (B, D).
        device: where it runs.
    """

    name: str
    sha256: str
    size: int
    forward: Callable[[Tensor], Tensor]
    device: str = "cpu"

    def __call__(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """(N, H, W) floats in [0, 1] -> (N, D) float32."""
        parts = []
        with torch.inference_mode(), Progress(len(images), f"features: {self.name}", "image") as progress:
            for begin in range(0, len(images), batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(images[begin : begin + batch_size], dtype=np.float32))
                parts.append(self.forward(self._resized(batch[:, None].to(self.device))).float().cpu().numpy())
                progress.advance(len(batch))
        return np.concatenate(parts)

    def describe(self) -> dict[str, Any]:
        """Return the description for a result file."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "input": f"{self.size} x {self.size}, bilinear, anti-aliased",
        }

    def _resized(self, batch: Tensor) -> Tensor:
        if batch.shape[-2:] == (self.size, self.size):
            return batch
        return interpolate(batch, (self.size, self.size), mode="bilinear", antialias=True).clamp(0, 1)


def load_feature_net(name: str, weights: str | None = None, device: str | None = None) -> FeatureNet:
    """A net by name.

    Args:
        name: ``random`` (four convolutions, 64 features at 128 pixels, no file); ``inception_v3`` or
            ``densenet121`` (torchvision's architectures; ``weights`` is its published ``.pth``, or for the
            latter torchxrayvision's of one channel); ``transformers`` (``weights`` is a model folder in
            Hugging Face's layout, RAD-DINO for one; its pooled output).
        weights: file or folder; must be absent for ``random``.
        device: where it runs; an accelerator if there is one.

    Raises:
        UserError: if the weights are absent, are not needed, or do not fit; the message names the expected file.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in NAMES:
        raise UserError(f"unknown feature net {name!r}: use {', '.join(NAMES)}")
    if name == "random":
        if weights:
            raise UserError("the feature net random takes no weights: leave --feature_weights out")
        return _random(device)
    if not weights or not Path(weights).exists():
        what = "not given" if not weights else f"not found at {weights}"
        raise UserError(
            f"weights of the feature net {name} {what}: nothing is downloaded, so put {_FILES[name]} on this machine "
            "and name its place with --feature_weights (--feature_net random needs no file)"
        )
    return _NETS[name](Path(weights), device)


def _random(device: str) -> FeatureNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        layers: list[nn.Module] = []
        channels = 1
        for width in (32, 64, 128, 256):
            layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)  # type: ignore[arg-type]
            channels = width
        # Nearly uncorrelated features: a mean alone over random maps leaves a few directions all the variance.
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(channels * 4, 64, bias=False))
        nn.init.orthogonal_(net[-1].weight)  # type: ignore[arg-type]
    digest = fingerprint({"net": "random"}, net.state_dict())
    net = net.to(device).eval()
    return FeatureNet("random, 4 convolutions, 64 features", digest, 128, lambda x: net(x * 4 - 2), device)


def _inception(weights: Path, device: str) -> FeatureNet:
    from torchvision.models import inception_v3

    net = inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=False)
    load_exactly(net, state_dict_of(weights), weights)
    net.fc = nn.Identity()
    return _imagenet(f"torchvision inception_v3, {weights.name}", weights, 299, net, device)


def densenet121(weights: Path) -> tuple[nn.Module, bool]:
    """Load DenseNet-121 with its classifier; True: it is torchxrayvision's, of one channel in [-1024, 1024].

    Args:
        weights: torchvision's ``.pth``, or torchxrayvision's weights saved as a state dict.

    Raises:
        UserError: if the file cannot be read or does not fit.
    """
    from torchvision.models import densenet121 as build

    state = state_dict_of(weights)
    grey = state.get("features.conv0.weight", torch.empty(0, 3)).shape[1] == 1
    classes = state.get("classifier.weight", torch.empty(1000, 0)).shape[0]
    net = build(weights=None, num_classes=classes)
    if grey:  # torchxrayvision's
        net.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    # Both publish the layers of a dense block as "norm.1", "conv.2"; torchvision's code says "norm1", "conv2".
    for part in ("norm", "relu", "conv"):
        state = {key.replace(f".{part}.1.", f".{part}1.").replace(f".{part}.2.", f".{part}2."): value
                 for key, value in state.items()}  # fmt: skip
    load_exactly(net, {key: value for key, value in state.items() if key != "op_threshs"}, weights)
    return net, grey


def _densenet(weights: Path, device: str) -> FeatureNet:
    net, grey = densenet121(weights)
    net.classifier = nn.Identity()
    if not grey:
        return _imagenet(f"torchvision densenet121, {weights.name}", weights, 224, net, device)
    net = net.to(device).eval()
    name = f"torchxrayvision densenet121, {weights.name}"
    return FeatureNet(name, sha256_file(weights), 224, lambda x: net((x * 2 - 1) * 1024), device)


def vision_model(folder: Path) -> Any:
    """Load a vision model of ``transformers`` from a local folder, in evaluation mode.

    Raises:
        UserError: if the folder holds none, or a file of it is damaged.
    """
    from transformers import AutoModel

    with checked_model_folder(folder, "a vision model"):
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    return model.eval()


def _transformers(weights: Path, device: str) -> FeatureNet:
    model = vision_model(weights).to(device)
    config = model.config
    size = getattr(config, "image_size", 224)
    size = int(size[0] if isinstance(size, list | tuple) else size)
    colours = int(getattr(config, "num_channels", 3))
    mean, std = normalisation(weights)

    def forward(x: Tensor) -> Tensor:
        found = model(pixel_values=(x.expand(-1, colours, -1, -1) - mean.to(x)) / std.to(x))
        pooled = getattr(found, "pooler_output", None)
        return found.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)

    digest = fingerprint({"model_type": config.model_type, "mean": mean.tolist(), "std": std.tolist()},
                         model.state_dict())  # fmt: skip
    return FeatureNet(f"transformers {config.model_type}, {weights.name}", digest, size, forward, device)


def normalisation(folder: Path) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1) mean and deviation that the folder's image processor subtracts; ImageNet's without one."""
    path = folder / "preprocessor_config.json"
    found = read_json(path, "an image processor") if path.is_file() else {}
    values = found.get("image_mean", IMAGENET_MEAN), found.get("image_std", IMAGENET_STD)
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in values)
    return mean, std


def _imagenet(name: str, weights: Path, size: int, net: nn.Module, device: str) -> FeatureNet:
    net = net.to(device).eval()
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def forward(x: Tensor) -> Tensor:
        features: Tensor = net((x.expand(-1, 3, -1, -1) - mean) / std)
        return features

    return FeatureNet(name, sha256_file(weights), size, forward, device)


def state_dict_of(path: Path) -> dict[str, Tensor]:
    """Read a file of plain weights.

    Raises:
        UserError: if it cannot be read without executing code, or holds no table of tensors.
    """
    check_weight_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler, its zip reader and the disk raise
        raise UserError(f"{path} cannot be read as plain weights: {' '.join(str(error).split())[:120]}") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no table of weights: save the model's state_dict() in its place")
    return state


def load_exactly(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict that has all tensors of ``net`` and no others; batch norms' counters may be missing.

    Raises:
        UserError: naming ``path`` and a tensor that is missing, unexpected or of another shape.
    """
    own = net.state_dict()
    # Files from before 2018 lack the counters of the batch norms, which nothing here reads.
    wanted = {key for key in own if not key.endswith("num_batches_tracked")}
    mismatched = sorted(key for key in wanted if key not in state or state[key].shape != own[key].shape)
    mismatched += sorted(key for key in state if key not in own)
    if mismatched:
        raise UserError(
            f"{path} does not fit the feature net: {len(mismatched)} tensors are missing, unexpected "
            f"or of another shape, such as {mismatched[0]}"
        )
    net.load_state_dict(state, strict=False)


_NETS: dict[str, Callable[[Path, str], FeatureNet]] = {
    "inception_v3": _inception,
    "densenet121": _densenet,
    "transformers": _transformers,
}
_FILES = {
    "inception_v3": "torchvision's inception_v3_google-0cc3c7bd.pth",
    "densenet121": "torchvision's densenet121-a639ec97.pth or torchxrayvision's weights saved as a state_dict",
    "transformers": "a model folder with config.json and model.safetensors (microsoft/rad-dino, say)",
}
NAMES = ("random", *_NETS)
