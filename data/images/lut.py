"""Grey-level transformations of DICOM (PS3.3 C.11): lookup tables, rescale, windows, inversion.

Stored values become modality values (Modality LUT or rescale), then display values in [0, 1] (VOI LUT or window).
Without either of the latter the range is that of the bits, never the image's minimum and maximum, so images of one
device remain comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray
from pydicom.dataset import Dataset

from medunifier.data.images.pixels import UnreadableImage

_FULL_WORD = 16
_SIGN = 2**15


@dataclass(frozen=True)
class LookupTable:
    """A Modality LUT or a VOI LUT (PS3.3 C.11.1.1 and C.11.2.1.1)."""

    entries: ndarray
    """(N,) unsigned integers in [0, ``high``]."""
    first: int
    """Input value of the first entry."""
    high: int
    """Upper end of the output range, 2^n - 1 for entries of n bits. The lower end is 0."""

    def apply(self, values: ndarray) -> ndarray:
        """Return the entries of (H, W) values, rounded; those outside the table take the first or the last entry."""
        last = len(self.entries) - 1
        if np.issubdtype(values.dtype, np.floating):
            values = np.rint(np.clip(values, self.first, self.first + last))
        index = values.astype(np.int32) - np.int32(self.first)
        return self.entries[np.clip(index, 0, last, out=index)]


def display_values(
    dataset: Dataset, stored: ndarray, stored_range: tuple[int, int], *, windowed: bool, inverted: bool
) -> ndarray:
    """Convert stored values to display values.

    Args:
        dataset: the header.
        stored: (H, W) integers.
        stored_range: least and greatest value of the stored bits.
        windowed: apply the VOI LUT, or else the first window of the header.
        inverted: the minimum is displayed white. Inversion follows the LUT or window (PS3.3 C.7.6.3.1.2).

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        UnreadableImage: an unusable lookup table, or a rescale slope of 0.
    """
    values, low, high = _modality_values(dataset, stored, stored_range)
    table = read_table(dataset, "VOILUTSequence", low, high) if windowed else None
    window = _window(dataset) if windowed and not table else None
    if table:
        values, low, high = table.apply(values), 0.0, float(table.high)
    values = values.astype(np.float32)
    if window:
        display = _windowed(values, *window, _voi_function(dataset))
    else:
        display = np.clip((values - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return np.subtract(np.float32(1.0), display, out=display) if inverted else display


def read_table(dataset: Dataset, sequence: str, low: float, high: float) -> LookupTable | None:
    """Read the first table of a Modality or VOI LUT Sequence.

    Headers differ in what the standard leaves open or devices ignore:

    - Entries of 8 bits are packed in pairs (the data has as many bytes as entries), or padded to words.
    - The second value of the descriptor is signed if its input may be, whatever the VR; the others never are.
    - 16 bits per entry often describe the storage. So if 16 are declared, or fewer than the greatest entry needs, the
      range is that of the least usual depth (8, 10, 12, 14, 16) which holds it; else it is that of the bits declared.
    - Data longer than declared is cut. In shorter data the last entry stands for the missing ones, at most half.

    Args:
        dataset: the header.
        sequence: ``ModalityLUTSequence`` or ``VOILUTSequence``.
        low, high: range of the table's input.

    Returns:
        The table; None if the sequence or its data is absent or empty.

    Raises:
        UnreadableImage: no valid descriptor, or less than half of the entries.
    """
    items = dataset.get(sequence)
    if not items or "LUTData" not in items[0]:
        return None
    item, name = items[0], "modality LUT" if sequence == "ModalityLUTSequence" else "VOI LUT"
    little = dataset.original_encoding[1] is not False
    descriptor = _words(item["LUTDescriptor"].value, little) if "LUTDescriptor" in item else np.empty(0)
    if len(descriptor) != 3:
        raise UnreadableImage(f"{name} without a valid descriptor")
    declared, first, bits = int(descriptor[0]) or 2**16, int(descriptor[1]), int(descriptor[2])
    element = item["LUTData"]
    words = _words(element.value, little)
    if not len(words):
        return None
    is_packed = len(words) == (declared + 1) // 2 or (bits <= 8 and len(words) < declared and words.max() > 255)
    if is_packed:  # the first entry of a pair is in the low byte of a word; a sequence of bytes has no words
        in_bytes = element.VR in ("OB", "UN") and isinstance(element.value, bytes)
        words = np.frombuffer(element.value if in_bytes else words.astype("<u2").tobytes(), np.uint8)
    entries = words[:declared]
    if 2 * len(entries) < declared:
        raise UnreadableImage(f"{name} with less than half of the entries declared")
    needed = int(entries.max()).bit_length()
    if not needed <= bits < _FULL_WORD:
        bits = max(8, needed + needed % 2)
    if first >= _SIGN:
        signed = first - 2**16
        # Where one of the two readings has no entry for any input, the other is meant.
        if (low < 0 and signed + len(entries) > low) or first > high:
            first = signed
    return LookupTable(entries, first, 2**bits - 1)


def _words(value: Any, little: bool) -> ndarray:
    """Return (N,) uint16 of an element: bytes, an integer, or integers of either sign."""
    if isinstance(value, bytes):
        value = value + b"\0" * (len(value) % 2)
        return np.frombuffer(value, "<u2" if little else ">u2").astype(np.uint16)
    numbers = [] if value is None else value if isinstance(value, Sequence) else [value]
    return (np.array(numbers, dtype=np.int64) & 0xFFFF).astype(np.uint16)


def _number(value: Any) -> float | None:
    """Return the (first) number of an attribute; None if it is empty or not a finite number."""
    if value is not None and not isinstance(value, str) and hasattr(value, "__len__"):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _modality_values(
    dataset: Dataset, stored: ndarray, stored_range: tuple[int, int]
) -> tuple[ndarray, float, float]:
    """Return the values after the modality LUT or rescale, and the range that the stored bits allow."""
    low, high = stored_range
    table = read_table(dataset, "ModalityLUTSequence", low, high)
    if table:
        return table.apply(stored), 0.0, float(table.high)
    slope, intercept = _number(dataset.get("RescaleSlope")), _number(dataset.get("RescaleIntercept"))
    if slope is None or intercept is None or (slope == 1 and intercept == 0):
        return stored, low, high
    if slope == 0:
        raise UnreadableImage("rescale slope is 0")
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept), ends[0], ends[1]


def _voi_function(dataset: Dataset) -> str:
    return str(dataset.get("VOILUTFunction") or "").strip().upper()


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """Return (centre, width) of the first window; None if there is no valid one."""
    centre, width = _number(dataset.get("WindowCenter")), _number(dataset.get("WindowWidth"))
    min_width = 1.0 if _voi_function(dataset) in ("", "LINEAR") else 0.0
    return (centre, width) if centre is not None and width is not None and width > min_width else None


def _windowed(values: ndarray, centre: float, width: float, function: str) -> ndarray:
    """Apply one of the three window functions of PS3.3 C.11.2.1.2 and .3, to [0, 1]."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return (1 / (1 + np.exp(np.float32(-4.0) * (values - np.float32(centre)) / np.float32(width)))).astype(
                np.float32
            )
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1.0
    display = (values - np.float32(centre)) / np.float32(width) + np.float32(0.5)
    return np.clip(display, 0.0, 1.0, out=display)
