"""Reconstruction metrics over a data set and all processes: PSNR, SSIM, MS-SSIM, LPIPS, codebook usage."""

import torch
from torch import Tensor

from medunifier.shared.metrics.images.codebook_usage import CodeCount
from medunifier.shared.metrics.images.fidelity import MS_SSIM_MIN_SIZE, ms_ssim, psnr, ssim
from medunifier.shared.training.distributed import all_reduce_sum
from medunifier.stage1_tokenizer.losses.perceptual import PerceptualDistance
from medunifier.stage1_tokenizer.pixel_range import to_unit


class Fidelity:
    """Accumulate metrics over batches and return their means over all images.

    Args:
        codebook_size: number of codebook entries, K.
        size: height and width of the images; MS-SSIM is omitted for images below its minimum size.
        perceptual: the perceptual distance, reported under its ``metric`` name; None omits it.
        device: device of the sums.
    """

    def __init__(
        self,
        codebook_size: int,
        size: int,
        perceptual: PerceptualDistance | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._perceptual, self._codes = perceptual, CodeCount(codebook_size, device)
        names = ["psnr", "ssim"]
        if size >= MS_SSIM_MIN_SIZE:
            names.append("ms_ssim")
        if perceptual is not None:
            names.append(perceptual.metric)
        # The same names on every process, including one that receives no image.
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}
        self._images = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, images: Tensor, reconstruction: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Add a batch.

        Args:
            images, reconstruction: (B, 1, H, W) in [-1, 1].
            codes: (B, h, w).

        Returns:
            (B,) values of each metric, by name.
        """
        a, b = to_unit(images), to_unit(reconstruction)
        values = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
        if "ms_ssim" in self._sums:
            values["ms_ssim"] = ms_ssim(a, b)
        if self._perceptual is not None:
            values[self._perceptual.metric] = self._perceptual(a * 2 - 1, b * 2 - 1).double()
        for name, value in values.items():
            self._sums[name] += value.sum()
        self._codes.add(codes)
        self._images += len(images)
        return values

    def figures(self) -> dict[str, float]:
        """Return the means over the images of all processes, ``codebook_usage`` and ``perplexity``."""
        total = all_reduce_sum(torch.stack([*self._sums.values(), self._images]))
        means = (total[:-1] / total[-1]).tolist()
        return dict(zip(self._sums, means, strict=True)) | self._codes.figures()
