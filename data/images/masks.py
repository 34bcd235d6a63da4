"""Segmentation masks of findings: read from files or run lengths, resized like their images, named in shards."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image

from medunifier.data.files.names import without_ending
from medunifier.data.images.pixels import MAX_PIXELS, UnreadableImage, decode_png
from medunifier.data.images.resize import UPRIGHT, Fit, Geometry, fit_square
from medunifier.data.records import Mask, StudyRecord
from medunifier.data.remote_paths import read_at_most
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.errors import UserError

_MAX_BYTES = 2 * MAX_PIXELS
"""Maximum size of a mask file: PNG adds little to incompressible grey levels."""


def slug(finding: str) -> str:
    """Return ``pleural-effusion`` for ``Pleural Effusion``."""
    return finding.lower().replace(" ", "-")


def member_name(image: int, finding: str) -> str:
    """Return ``0.mask.pneumothorax.png`` for image 0. Stock webdataset reads it as an image."""
    return f"{image}.mask.{slug(finding)}.png"


def masks_of_image(members: Mapping[str, bytes | memoryview], image: int) -> dict[str, ndarray]:
    """Return {finding: (S, S) bool} of one image, from a sample's members."""
    found = {}
    for finding in OBSERVATIONS:
        content = members.get(member_name(image, finding))
        if content is not None:
            found[finding] = decode_png(content) > 127
    return found


def add_masks(records: Sequence[StudyRecord], folder: str) -> list[StudyRecord]:
    """Return the records with the masks of a folder, named ``IMAGE.FINDING.png``, added to their views.

    Raises:
        UserError: if the folder has no mask of any image: it is absent, or its files are named differently.
    """
    files = {path.name: path for path in Path(folder).glob("*.png")}

    def of_image(name: str) -> tuple[tuple[str, Mask], ...]:
        names = {finding: mask_name(name, finding) for finding in OBSERVATIONS}
        return tuple((finding, files[mask]) for finding, mask in names.items() if mask in files)

    found = [
        replace(
            record,
            views=tuple(replace(view, masks=(*view.masks, *of_image(view.path.name))) for view in record.views),
        )
        for record in records
    ]
    if not any(view.masks for record in found for view in record.views):
        example = mask_name(records[0].views[0].path.name, "Pleural Effusion")
        raise UserError(f"{folder} has no mask of any image: expected IMAGE.FINDING.png, such as {example}")
    return found


def mask_name(image: str, finding: str) -> str:
    """Return ``1234.pleural-effusion.png`` for the file ``1234.dcm``."""
    return f"{without_ending(image)}.{slug(finding)}.png"


def read_masks(
    masks: Iterable[tuple[str, Mask]],
    shape: tuple[int, int],
    size: int,
    fit: Fit = "pad",
    geometry: Geometry = UPRIGHT,
) -> dict[str, ndarray]:
    """Read the masks of an image, merge those of one finding, and transform them to the square like the image.

    Args:
        masks: (finding, mask) pairs.
        shape: rows and columns of the image as stored.
        size: side of the square.
        fit: how the image was fitted.
        geometry: the image's, since its masks mark stored pixels.

    Returns:
        {finding: (size, size) bool}: true where at least half of the resized pixel is marked.

    Raises:
        UnreadableImage: if one cannot be read, or its size differs from the image's.
    """
    merged: dict[str, ndarray] = {}
    for finding, mask in masks:
        marked = decode_runs(mask, *shape) if isinstance(mask, str) else _read_png(mask)
        if marked.shape != tuple(shape):
            rows, columns = marked.shape
            raise UnreadableImage(f"its mask has {rows} x {columns} pixels, the image {shape[0]} x {shape[1]}")
        merged[finding] = merged.get(finding, False) | marked
    return {
        name: fit_square(geometry.apply(marked.astype(np.float32)), size, fit) >= 0.5
        for name, marked in merged.items()
    }


def decode_runs(text: str, rows: int, columns: int) -> ndarray:
    """Decode SIIM-ACR's run lengths to a (rows, columns) bool mask.

    Pairs "gap length": the gap is counted from the end of the previous run, in column-major order (the competition's
    ``mask_functions.py``).

    Raises:
        UnreadableImage: if they are not pairs of numbers, or exceed the image.
    """
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except ValueError:
        raise UnreadableImage("its mask has invalid run lengths") from None
    ends = numbers.cumsum()
    if len(numbers) % 2 or not len(numbers) or numbers.min() < 0 or ends[-1] > rows * columns:
        raise UnreadableImage(f"its mask's run lengths do not fit {rows} x {columns} pixels")
    flat = np.zeros(rows * columns, dtype=bool)
    for begin, end in zip(ends[::2], ends[1::2], strict=True):
        flat[begin:end] = True
    return flat.reshape(columns, rows).T


def _read_png(path: Path) -> ndarray:
    try:
        with Image.open(BytesIO(read_at_most(path, _MAX_BYTES)), formats=["PNG"]) as image:
            if image.mode not in ("L", "1") or image.width * image.height > MAX_PIXELS:
                raise UnreadableImage("its mask is not a grey PNG")
            return np.asarray(image.convert("L")) > 127
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's messages contain the file name
        raise UnreadableImage(f"its mask is not readable as PNG ({type(error).__name__})") from None
