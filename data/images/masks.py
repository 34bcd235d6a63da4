"""Finding masks: formats of the data sets, resizing with the image, and member names in a shard."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image

from medunifier.data.images.pixels import MAX_PIXELS, Fit, UnreadableImage, decode_png, fit_square
from medunifier.data.records import Mask, StudyRecord
from medunifier.data.remote_paths import read_at_most
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.errors import UserError

_MOST_BYTES = 2 * MAX_PIXELS
"""Of a mask's file: PNG adds little to grey levels that it cannot compress."""
_ENDING = re.compile(r"\.(dcm|dicom|png|jpe?g)(\.gz)?$", re.IGNORECASE)


def slug(finding: str) -> str:
    """``Pleural Effusion`` -> ``pleural-effusion``."""
    return finding.lower().replace(" ", "-")


def member_name(image: int, finding: str) -> str:
    """``0.mask.pneumothorax.png``: image 0's. Stock webdataset reads it as a picture."""
    return f"{image}.mask.{slug(finding)}.png"


def masks_of_image(members: Mapping[str, bytes | memoryview], image: int) -> dict[str, ndarray]:
    """{finding: (S, S) booleans} of one image, from a sample's members."""
    found = {}
    for finding in OBSERVATIONS:
        content = members.get(member_name(image, finding))
        if content is not None:
            found[finding] = decode_png(content) > 127
    return found


def add_masks(records: Sequence[StudyRecord], folder: str) -> list[StudyRecord]:
    """The records, their views with the masks that a folder has of them, as ``IMAGE.FINDING.png``.

    Raises:
        UserError: if it has none: it is absent, or its names follow another rule.
    """
    there = {path.name: path for path in Path(folder).glob("*.png")}

    def of_image(name: str) -> tuple[tuple[str, Mask], ...]:
        names = {finding: mask_name(name, finding) for finding in OBSERVATIONS}
        return tuple((finding, there[mask]) for finding, mask in names.items() if mask in there)

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
    """``1234.pleural-effusion.png`` for the file ``1234.dcm``."""
    return f"{_ENDING.sub('', image)}.{slug(finding)}.png"


def read_masks(
    masks: Iterable[tuple[str, Mask]], shape: tuple[int, int], size: int, fit: Fit = "pad"
) -> dict[str, ndarray]:
    """Return the masks of an image, merged by finding and resized with it.

    Args:
        masks: (finding, mask) pairs.
        shape: rows and columns of the stored image.
        size: side of the square.
        fit: pad or crop, as for the image.

    Returns:
        {finding: (size, size) booleans}: true where at least half of a new pixel was.

    Raises:
        UnreadableImage: if a mask cannot be read, or has another size than the image.
    """
    joined: dict[str, ndarray] = {}
    for finding, mask in masks:
        marked = decode_runs(mask, *shape) if isinstance(mask, str) else _read_png(mask)
        if marked.shape != tuple(shape):
            rows, columns = marked.shape
            raise UnreadableImage(f"its mask has {rows} x {columns} pixels, the image {shape[0]} x {shape[1]}")
        joined[finding] = joined.get(finding, False) | marked
    return {name: fit_square(marked.astype(np.float32), size, fit) >= 0.5 for name, marked in joined.items()}


def decode_runs(text: str, rows: int, columns: int) -> ndarray:
    """SIIM-ACR's run lengths -> (rows, columns) booleans.

    Pairs "gap length": the gap is counted from the end of the run before, pixels go down the columns (the
    competition's own ``mask_functions.py``).

    Raises:
        UnreadableImage: if they are no pairs of numbers, or leave the picture.
    """
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except ValueError:
        raise UnreadableImage("its mask holds what is no run length") from None
    ends = numbers.cumsum()
    if len(numbers) % 2 or not len(numbers) or numbers.min() < 0 or ends[-1] > rows * columns:
        raise UnreadableImage(f"its mask's run lengths do not fit {rows} x {columns} pixels")
    flat = np.zeros(rows * columns, dtype=bool)
    for begin, end in zip(ends[::2], ends[1::2], strict=True):
        flat[begin:end] = True
    return flat.reshape(columns, rows).T


def _read_png(path: Path) -> ndarray:
    try:
        with Image.open(BytesIO(read_at_most(path, _MOST_BYTES)), formats=["PNG"]) as image:
            if image.mode not in ("L", "1") or image.width * image.height > MAX_PIXELS:
                raise UnreadableImage("its mask is no grey PNG")
            return np.asarray(image.convert("L")) > 127
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's texts name the file
        raise UnreadableImage(f"its mask is not readable as PNG ({type(error).__name__})") from None
