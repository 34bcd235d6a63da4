"""The pictures of a result file: a folder of PNGs beside it, those that were computed marked as such."""

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
    """Where the pictures of a result file lie."""
    return out.with_name(f"{out.stem}-pictures")


def save_pictures(folder: Path, pictures: Mapping[str, np.ndarray]) -> None:
    """Write every (H, W) picture in [0, 1] as an 8-bit PNG, into a folder that is complete or absent.

    Raises:
        ValueError: if a name is no plain file stem.
    """
    with atomic_folder(folder) as partial:
        for name, image in pictures.items():
            if not re.fullmatch(r"[a-z0-9-]+", name):
                raise ValueError(f"picture name {name!r} is no file stem")
            path = partial / f"{name}.png"
            if notice := next((notice for kind, notice in _COMPUTED.items() if kind in name), None):
                save_synthetic_png(path, image, "Made while a model was judged (medunifier evaluate).", notice)
            else:
                Image.fromarray(to_uint8(image)).save(path)


def load_picture(folder: Path, name: str) -> np.ndarray:
    """One of them: (H, W) uint8."""
    return np.asarray(Image.open(folder / f"{name}.png"))
