"""Train a small classifier of findings on real radiographs, to evaluate generated and reconstructed ones."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits

from medunifier.shared.progress import Progress

INPUT = 64
BATCH = 32
# (channels, kernel, stride): 32 pixels a side after the first layer, 4 after the last. Strides in place of pooling
# reduce the FLOPs.
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
    # Flattened without average pooling: the position and the side of a finding matter.
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels * (INPUT // 2**4) ** 2, findings))


class FindingClassifier:
    """Multi-label classifier at 64 px; its default training takes about 20 seconds on one core.

    Args:
        images: (N, H, W) real training radiographs, floats in [0, 1].
        truth: (N, F) 1, 0, or NaN for labels that are ignored.
        steps: optimizer steps of 32 images.
        seed: of the weights, the order and the augmentation.
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
        with Progress(steps, "training the classifier of findings", "step") as progress:
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
        """Return (N, F) logits of (N, H, W) images, floats in [0, 1]."""
        with torch.inference_mode():
            return torch.cat([self._net(batch) for batch in _small(images).split(256)]).cpu().numpy()


def _small(images: np.ndarray) -> Tensor:
    """Resize (N, H, W) images in [0, 1] to (N, 1, 64, 64), centred at 0."""
    batches = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None].split(256)
    return (torch.cat([adaptive_avg_pool2d(batch, INPUT) for batch in batches]) - 0.5) * 4


def _shifted(images: Tensor, most: int = 2) -> Tensor:
    """Shift the batch by up to ``most`` pixels and jitter the brightness. No flips, since the side matters."""
    down, right = torch.randint(-most, most + 1, (2,)).tolist()
    moved = torch.roll(images, (down, right), dims=(2, 3))
    return moved * (1 + 0.1 * torch.randn(len(images), 1, 1, 1)) + 0.1 * torch.randn(len(images), 1, 1, 1)
