"""Rendering steps common to frontal and lateral views: adding shadows, uneven exposure, grain."""

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from PIL import Image

from medunifier.data.phantom.rendering.anatomy import Grid


def add_density(image: ndarray, density: ndarray) -> ndarray:
    """Add a shadow to the image. It shows less on denser tissue, and saturates at 0.85."""
    if density.size == 1:  # no finding
        return image
    return image + density * np.clip((0.85 - image) / 0.60, 0.0, 1.0)


def smooth(g: Grid, rng: Generator, cells: int) -> ndarray:
    """Return (H, W) smooth noise with about unit standard deviation: an enlarged coarse normal field."""
    size = g.x.shape[1]
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def expose(g: Grid, image: ndarray, haze: float, rng: Generator) -> ndarray:
    """Return the radiograph, (H, W) float32 in [0, 1], of a density map.

    Args:
        image: (H, W) densities, 0 is air.
        haze: scatter added where there is tissue.
        rng: samples gain, mottle and grain.
    """
    gain = rng.uniform(0.94, 1.06)
    image = image * gain + haze * (image > 0.08) + 0.012 * smooth(g, rng, 9)
    image += 0.010 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0.0, 1.0).astype(np.float32)
