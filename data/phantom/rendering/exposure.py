"""What all films share, frontal or lateral: shadows that add up, uneven exposure, grain."""

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from PIL import Image

from medunifier.data.phantom.rendering.anatomy import Grid


def over(image: ndarray, density: ndarray) -> ndarray:
    """Adds a shadow: the denser what lies there already, the less it shows (0.85 is as white as it gets)."""
    if density.size == 1:  # nothing there
        return image
    return image + density * np.clip((0.85 - image) / 0.60, 0.0, 1.0)


def smooth(g: Grid, rng: Generator, cells: int) -> ndarray:
    """(H, W) smooth noise of about unit spread: a coarse normal field, enlarged."""
    size = g.x.shape[1]
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def expose(g: Grid, image: ndarray, haze: float, rng: Generator) -> ndarray:
    """(H, W) float32 in [0, 1]: the film of what lies in the beam.

    Args:
        image: (H, W) densities, 0 is air.
        haze: scattered light on what is not air.
        rng: gain, mottle and grain.
    """
    gain = rng.uniform(0.94, 1.06)
    image = image * gain + haze * (image > 0.08) + 0.012 * smooth(g, rng, 9)
    image += 0.010 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0.0, 1.0).astype(np.float32)
