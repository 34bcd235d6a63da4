"""Images of a result file: a folder of PNGs beside it, with synthetic ones marked."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from medunifier.data.images.synthetic import NOTICE, RECONSTRUCTION, save_synthetic_png
from medunifier.shared.artifacts import atomic_folder
from medunifier.shared.files.grey_levels import to_uint8

_COMPUTED = {"generated": NOTICE, "reconstruction": RECONSTRUCTION}


def pictures_folder(out: Path) -> Path:
    """Return the image folder of a result file."""
    return out.with_name(f"{out.stem}-pictures")


def save_pictures(folder: Path, pictures: Mapping[str, np.ndarray]) -> None:
    """Write every (H, W) image in [0, 1] as an 8-bit PNG; the folder appears only when complete.

    Raises:
        ValueError: if a name is no plain file stem.
    """
    with atomic_folder(folder) as partial:
        for name, image in pictures.items():
            if not re.fullmatch(r"[a-z0-9-]+", name):
                raise ValueError(f"picture name {name!r} is no file stem")
            path = partial / f"{name}.png"
            if notice := next((notice for kind, notice in _COMPUTED.items() if kind in name), None):
                save_synthetic_png(path, image, "Made during model evaluation (medunifier evaluate).", notice)
            else:
                Image.fromarray(to_uint8(image)).save(path)


def load_picture(folder: Path, name: str) -> np.ndarray:
    """Read one image: (H, W) uint8."""
    return np.asarray(Image.open(folder / f"{name}.png"))
