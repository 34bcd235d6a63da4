"""DICOM headers and stored pixels of phantom images, with the variety found in real archives.

`basic` varies the attributes that affect pixel decoding. `openi` follows the headers of Open-I's 7,469 chest
radiographs: machine types with the attributes that occur together, at their frequencies. With any header, decoding
the file returns the image to within its quantization.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from medunifier.data.phantom.dicom_file import Value, encode_dicom

Headers = Literal["basic", "openi"]

_CR, _DX = str(ComputedRadiographyImageStorage), str(DigitalXRayImageStorageForPresentation)
_SYNTHETIC = "Synthetic: drawn by a procedural phantom, not a patient"


@dataclass(frozen=True)
class ImageHeader:
    """Identifiers, view and acquisition time of one image."""

    view: str
    """PA, AP or LATERAL."""
    patient_id: str
    study_id: str
    dicom_id: str
    number: int
    """Index of the view within its study, from 0."""
    date: str
    time: str


def dicom_file_bytes(
    header: ImageHeader, image: ndarray, headers: Headers, rng: Generator
) -> tuple[bytes, tuple[int, int]]:
    """Return one view as the bytes of a DICOM file, and its rows and columns.

    Args:
        header: identifiers, view and time.
        image: (H, W) in [0, 1], bones bright.
        headers: variety of the headers. With `openi` the image is center-cropped to the aspect ratio of a
            radiograph.
        rng: samples the attributes.
    """
    return (_basic if headers == "basic" else _openi)(header, image, rng)


def _common(header: ImageHeader, sop_class: str, image_type: tuple[str, ...]) -> dict[str, Value]:
    return {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": str(generate_uid(entropy_srcs=[header.dicom_id])),
        "StudyInstanceUID": str(generate_uid(entropy_srcs=["study", header.study_id])),
        "SeriesInstanceUID": str(generate_uid(entropy_srcs=["series", header.dicom_id])),
        "ImageType": image_type,
        "DerivationDescription": _SYNTHETIC,
        "StudyDate": header.date,
        "StudyTime": header.time,
        "PatientID": header.patient_id,
        "PatientName": "",
        "StudyID": header.study_id,
        "SeriesNumber": "1",
        "InstanceNumber": str(header.number + 1),
    }


def _pixel_module(stored: ndarray, bits: int, inverse: bool) -> dict[str, Value]:
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME1" if inverse else "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
    }


def _basic(header: ImageHeader, image: ndarray, rng: Generator) -> tuple[bytes, tuple[int, int]]:
    """Nearly half MONOCHROME1; 12, 15, 10 or 14 bits; often without rescale, window or PresentationLUTShape."""
    bits = int(rng.choice((12, 15, 10, 14), p=(0.76, 0.20, 0.02, 0.02)))
    inverse = rng.random() < 0.48
    syntax = ExplicitVRLittleEndian if rng.random() < 0.7 else ImplicitVRLittleEndian
    digital = header.view == "PA" and rng.random() < 0.3
    elements = _common(header, _DX if digital else _CR, ("DERIVED", "SECONDARY"))
    elements["Modality"] = "DX" if digital else "CR"
    elements["BodyPartExamined"] = "CHEST" if rng.random() < 0.7 else ""
    elements["ViewPosition"] = header.view if rng.random() < 0.8 else ""
    top = 2**bits - 1
    stored = np.rint(image * top).astype("<u2")
    if inverse:
        stored = (top - stored).astype("<u2")
    elements |= _pixel_module(stored, bits, inverse)
    if rng.random() < 0.5:
        elements["PresentationLUTShape"] = "INVERSE" if inverse else "IDENTITY"
    if rng.random() < 0.6:
        elements |= {"RescaleIntercept": "0", "RescaleSlope": "1", "RescaleType": "US"}
    if rng.random() < 0.55:
        elements |= {"WindowCenter": f"{2 ** (bits - 1)}.0", "WindowWidth": f"{2**bits}.0"}
    return encode_dicom(elements, stored, syntax), stored.shape


@dataclass(frozen=True)
class _Machine:
    """A group of Open-I images with common header attributes."""

    count: int
    """Number of images, of 7,469."""
    bits: int
    inverse: bool
    image_type: tuple[str, ...]
    spacing: str
    """Pixel spacing in millimetres, as written in the header."""
    rows: int
    """Rows of a square or portrait image, for scaling the spacing."""
    aspects: tuple[float, ...]
    """Columns divided by rows, for each image format."""
    window: tuple[str, str] | Literal["free"] | None = None
    """Center and width as written in the header; "free": sampled for each image."""
    rescale: tuple[str, str, str] | None = None
    """Intercept, slope, type."""
    lut_shape: str = ""
    sop_class: str = _CR
    modality: str = "CR"
    names_view: bool = True
    names_body_part: bool = True
    plane_spacing: bool = True
    """PixelSpacing beside ImagerPixelSpacing."""
    charset: str = "ISO_IR 100"
    sign: int = 0
    """PixelIntensityRelationshipSign, 0 if absent."""
    clean: bool = False
    """Whether the header states that no annotation is burned in."""


_PORTRAIT, _LANDSCAPE = 0.82, 1.22
_BOTH = (_PORTRAIT, _LANDSCAPE)
_MACHINES = (
    _Machine(
        2878, 12, True, ("DERIVED", "PRIMARY"), "0.1500", 2828, _BOTH, rescale=("0", "1", "LOG_E REL"),
        charset="ISO 2022 IR 6",
    ),
    _Machine(
        2503, 12, False, ("DERIVED", "SECONDARY", "", "CSA RESAMPLED"), "0.143", 2991, (1.0, 1.0, 1.0, _PORTRAIT),
        window="free", lut_shape="IDENTITY", names_view=False, names_body_part=False, plane_spacing=False, clean=True,
    ),
    _Machine(
        904, 15, False, ("DERIVED", "PRIMARY"), "0.144", 2991, (1.0, 0.99, 0.85), window=("16383.500", "32767.000"),
        rescale=("0.000", "1.000", "US"), lut_shape="IDENTITY", sop_class=_DX, sign=-1, clean=True,
    ),
    _Machine(
        430, 15, True, ("ORIGINAL", "PRIMARY"), "0.15000000596046", 2828, _BOTH, window=("16384", "16384"),
        rescale=("0", "1", "P-VALUES"), lut_shape="INVERSE", clean=True,
    ),
    _Machine(
        142, 15, True, ("ORIGINAL", "PRIMARY"), "0.16990000009536", 2494, _BOTH, rescale=("0", "1", "P-VALUES"),
        lut_shape="INVERSE", clean=True,
    ),
    _Machine(281, 12, False, ("DERIVED",), "0.139", 2968, _BOTH, lut_shape="IDENTITY"),
    _Machine(
        96, 12, False, ("ORIGINAL", "PRIMARY", ""), "0.1438633369923", 2995, (1.0, 0.85), window=("2047.0", "4095.0"),
        rescale=("0.0", "1.0", "US"), lut_shape="IDENTITY", sop_class=_DX, charset="", sign=1, clean=True,
    ),
    _Machine(73, 12, False, ("DERIVED",), "0.168", 2500, _BOTH, window=("2048", "4096")),
    _Machine(
        61, 10, True, ("DERIVED", "PRIMARY", "POST_PROCESSED"), "0.15", 2880, _BOTH, rescale=("0", "1", "US"),
        names_view=False, charset="",
    ),
    _Machine(48, 12, True, (), "0.160", 2688, (*_BOTH, 1.0), window=("2048", "4096"), charset=""),
    _Machine(
        26, 14, False, ("ORIGINAL", "PRIMARY", ""), "0.19464481", 2022, (1.0, 0.86), window="free",
        rescale=("0", "1", "US"), lut_shape="IDENTITY", sop_class=_DX, modality="DX", plane_spacing=False, sign=-1,
        clean=True,
    ),
)  # fmt: skip
_PROBABILITIES = np.array([machine.count for machine in _MACHINES]) / sum(machine.count for machine in _MACHINES)

# Open-I's table does not list the transfer syntaxes; these are the ones supported here.
_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless)
_SYNTAX_PROBABILITIES = (0.60, 0.30, 0.05, 0.05)
_LATERAL_NAMES = ("LL", "LATERAL", "RL")
_LATERAL_PROBABILITIES = (0.83, 0.14, 0.03)


def _openi(header: ImageHeader, image: ndarray, rng: Generator) -> tuple[bytes, tuple[int, int]]:
    machine = _MACHINES[int(rng.choice(len(_MACHINES), p=_PROBABILITIES))]
    syntax = _SYNTAXES[int(rng.choice(len(_SYNTAXES), p=_SYNTAX_PROBABILITIES))]
    image = _crop(image, machine.aspects[int(rng.integers(len(machine.aspects)))])
    elements = _common(header, machine.sop_class, machine.image_type)
    elements["Modality"] = machine.modality
    if machine.charset:
        elements["SpecificCharacterSet"] = machine.charset
    elements["BodyPartExamined"] = "CHEST" if machine.names_body_part else ""
    view = str(rng.choice(_LATERAL_NAMES, p=_LATERAL_PROBABILITIES)) if header.view == "LATERAL" else header.view
    elements["ViewPosition"] = view if machine.names_view else ""
    elements["PatientOrientation"] = ("A", "F") if header.view == "LATERAL" else ("L", "F")
    elements |= _geometry(machine, image)
    elements |= _signal(machine)
    window = _window(machine, rng)
    if window is not None:
        elements["WindowCenter"], elements["WindowWidth"] = window
    if window is not None and machine.modality == "DX":  # these also list a harder and a softer window
        center, width = window
        elements["WindowCenter"] = (center,) * 3
        elements["WindowWidth"] = (width, f"{0.75 * float(width):.0f}", f"{1.5 * float(width):.0f}")
        elements["WindowCenterWidthExplanation"] = ("NORMAL", "HARDER", "SOFTER")
    stored = _stored(image, machine, window)
    elements |= _pixel_module(stored, machine.bits, machine.inverse)
    return encode_dicom(elements, stored, syntax), stored.shape


def _crop(image: ndarray, aspect: float) -> ndarray:
    """Center-crop a square image to columns / rows = `aspect`."""
    size = len(image)
    rows, columns = (size, round(size * aspect)) if aspect <= 1 else (round(size / aspect), size)
    top, left = (size - rows) // 2, (size - columns) // 2
    return image[top : top + rows, left : left + columns]


def _geometry(machine: _Machine, image: ndarray) -> dict[str, Value]:
    """Return the pixel spacing in millimetres: the machine's, scaled from its resolution to that of the image."""
    scale = machine.rows / max(image.shape)
    spacing = machine.spacing if math.isclose(scale, 1.0) else f"{float(machine.spacing) * scale:.6f}"
    elements: dict[str, Value] = {"ImagerPixelSpacing": (spacing, spacing)}
    if machine.plane_spacing:
        elements["PixelSpacing"] = (spacing, spacing)
    return elements


def _signal(machine: _Machine) -> dict[str, Value]:
    elements: dict[str, Value] = {}
    if machine.lut_shape:
        elements["PresentationLUTShape"] = machine.lut_shape
    if machine.rescale:
        elements["RescaleIntercept"], elements["RescaleSlope"], elements["RescaleType"] = machine.rescale
    if machine.sign:
        elements["PixelIntensityRelationship"], elements["PixelIntensityRelationshipSign"] = "LOG", machine.sign
        elements["PresentationIntentType"] = "FOR PRESENTATION"
    if machine.clean:
        elements["BurnedInAnnotation"], elements["LossyImageCompression"] = "NO", "00"
    return elements


def _window(machine: _Machine, rng: Generator) -> tuple[str, str] | None:
    """Return the window center and width as written in the header.

    In 2,674 Open-I images with 12 bits and an individual window, the quartiles of the center are 1498, 1683 and
    1867, those of the width 2419, 2850 and 3254.
    """
    if machine.window != "free":
        return machine.window
    scale = 2 ** (machine.bits - 12)
    center = int(np.clip(rng.normal(1683, 270), 1000, 2300)) * scale
    width = int(np.clip(rng.normal(2850, 600), 1400, 4000)) * scale
    return str(center), str(min(width, 2 * center))  # the window begins at 0 or above


def _stored(image: ndarray, machine: _Machine, window: tuple[str, str] | None) -> ndarray:
    """Return the stored values, (H, W) "<u2", that the window (or the full bit range) maps to this image."""
    top = 2**machine.bits - 1
    if window is None:
        windowed = image * top
    else:  # PS3.3 C.11.2.1.2, solved for the value
        center, width = (float(number) for number in window)
        if machine.inverse:
            center = top - center
        windowed = (image - 0.5) * (width - 1) + center - 0.5
    values = np.clip(np.rint(windowed), 0, top)
    return (top - values if machine.inverse else values).astype("<u2")
