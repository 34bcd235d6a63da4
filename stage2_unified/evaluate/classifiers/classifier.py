"""A small network that names findings on radiographs, trained on real ones: the judge of generated images."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits

from medunifier.shared.progress import Progress

INPUT = 64
BATCH = 32
# (channels, kernel, stride): 32 pixels a side after the first, 4 after the last. Strides in place of pooling
# keep the arithmetic where it is cheap.
LAYERS = ((24, 5, 2), (48, 3, 2), (64, 3, 2), (96, 3, 2))
PEAK_RATE = 3e-3


def _network(findings: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for width, kernel, stride in LAYERS:
        layers += [
            nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    # The places are kept, not averaged away: an effusion is where it is, and a side is a finding's half.
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels * (INPUT // 2**4) ** 2, findings))


class FindingClassifier:
    """Multi-label classifier at 64 px; its default training takes about 20 seconds on one core.

    Args:
        images: (N, H, W) real training radiographs, floats in [0, 1].
        truth: (N, F) 1, 0, or NaN for labels that do not count.
        steps: optimizer steps of 32 images.
        seed: of weights, order and augmentation.
    """

    def __init__(self, images: np.ndarray, truth: np.ndarray, steps: int = 500, seed: int = 0) -> None:
        self.findings = truth.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._net = _network(self.findings)
            self._fit(_small(images), torch.from_numpy(truth).float(), steps)
        self._net.eval()

    def _fit(self, images: Tensor, truth: Tensor, steps: int) -> None:
        optimizer = torch.optim.AdamW(self._net.parameters(), lr=PEAK_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.2)
        counts = ~truth.isnan()
        truth = truth.nan_to_num()
        self._net.train()
        with Progress(steps, "training the judge", "step") as progress:
            for _ in range(steps):
                rows = torch.randint(len(images), (BATCH,))
                logits = self._net(_shifted(images[rows]))
                loss = binary_cross_entropy_with_logits(logits, truth[rows], weight=counts[rows].float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.advance(1, loss=loss.item())

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W) floats in [0, 1] -> (N, F) logits."""
        with torch.inference_mode():
            return torch.cat([self._net(part) for part in _small(images).split(256)]).numpy()


def _small(images: np.ndarray) -> Tensor:
    """(N, H, W) in [0, 1] -> (N, 1, 64, 64) around 0."""
    parts = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None].split(256)
    return (torch.cat([adaptive_avg_pool2d(part, INPUT) for part in parts]) - 0.5) * 4


def _shifted(images: Tensor, most: int = 2) -> Tensor:
    """The batch moved by up to ``most`` pixels, and brightened a little; never mirrored: sides matter."""
    down, right = torch.randint(-most, most + 1, (2,)).tolist()
    moved = torch.roll(images, (down, right), dims=(2, 3))
    return moved * (1 + 0.1 * torch.randn(len(images), 1, 1, 1)) + 0.1 * torch.randn(len(images), 1, 1, 1)
