"""Figures of a tokenizer over a whole set and all processes: PSNR, SSIM, MS-SSIM, LPIPS, use of the codebook."""

import torch
from torch import Tensor

from medunifier.shared.metrics.images.codebook_usage import CodeCount
from medunifier.shared.metrics.images.fidelity import MS_SSIM_MIN_SIZE, ms_ssim, psnr, ssim
from medunifier.shared.training.distributed import all_reduce_sum
from medunifier.stage1_tokenizer.losses.perceptual import FrozenDistance
from medunifier.stage1_tokenizer.preprocessing import to_unit


class Fidelity:
    """Adds up batches, then gives the means over all images.

    Args:
        codes: entries of the codebook.
        size: height and width of the images; MS-SSIM is left out where they are too small for it.
        perceptual: the perceptual net, or None to leave that figure out; it bears the net's ``figure`` as its name.
        device: where the sums are kept.
    """

    def __init__(
        self, codes: int, size: int, perceptual: FrozenDistance | None, device: torch.device | str = "cpu"
    ) -> None:
        self._perceptual, self._codes = perceptual, CodeCount(codes, device)
        names = ["psnr", "ssim"]
        if size >= MS_SSIM_MIN_SIZE:
            names.append("ms_ssim")
        if perceptual is not None:
            names.append(perceptual.figure)
        # On every process the same names, also on one that has no image.
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}
        self._images = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, images: Tensor, reconstruction: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Count a batch.

        Args:
            images, reconstruction: (B, 1, H, W) in [-1, 1].
            codes: (B, h, w).

        Returns:
            (B,) figures of each image, by name.
        """
        a, b = to_unit(images), to_unit(reconstruction)
        values = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
        if "ms_ssim" in self._sums:
            values["ms_ssim"] = ms_ssim(a, b)
        if self._perceptual is not None:
            values[self._perceptual.figure] = self._perceptual(a * 2 - 1, b * 2 - 1).double()
        for name, value in values.items():
            self._sums[name] += value.sum()
        self._codes.add(codes)
        self._images += len(images)
        return values

    def figures(self) -> dict[str, float]:
        """Means over the images of all processes, and the codebook's ``codebook_usage`` and ``perplexity``."""
        total = all_reduce_sum(torch.stack([*self._sums.values(), self._images]))
        means = (total[:-1] / total[-1]).tolist()
        return dict(zip(self._sums, means, strict=True)) | self._codes.figures()
