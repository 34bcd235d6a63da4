"""Requirements: packages, DICOM decoders and weights, whether they are installed, and how to get them."""

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

REQUIRED = (
    "torch", "torchvision", "transformers", "accelerate", "tokenizers", "safetensors", "pydicom", "pillow", "numpy",
    "jsonargparse",
)  # fmt: skip

# Optional packages that are in none of our extras: name, purpose.
_SEPARATE = (
    ("faiss-cpu", "retrieve --engine faiss"),
    ("s3fs", "archives on s3://"),
    ("gcsfs", "archives on gs://"),
)

_EXTRA = re.compile(r"""^([\w.-]+)[^;]*;.*extra\s*==\s*['"](\w+)['"]""")

_PLUGINS = ("pyjpegls", "pylibjpeg")

_SYNTAXES: dict[str, UID] = {
    "JPEG": JPEGBaseline8Bit,
    "JPEG 12 bit": JPEGExtended12Bit,
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG lossless, any predictor": JPEGLossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG-LS near-lossless": JPEGLSNearLossless,
    "JPEG 2000 lossless": JPEG2000Lossless,
    "JPEG 2000": JPEG2000,
    "RLE": RLELossless,
}


@dataclass(frozen=True)
class Need:
    """A requirement: name, purpose, what was found ("" = missing), how to get it."""

    name: str
    purpose: str
    found: str
    remedy: str = ""


def packages() -> list[Need]:
    """Return the required packages with their versions."""
    return [Need(name, "", _version(name), "pip install medunifier") for name in REQUIRED]


def optional_packages() -> list[Need]:
    """Return the optional packages, each with the extra that includes it, from the project's metadata."""
    found = filter(None, map(_EXTRA.match, importlib.metadata.requires("medunifier") or []))
    rows: dict[str, Need] = {}
    # The dev extra repeats packages of the others: it is named only for packages that no other extra includes.
    for name, extra in sorted((match.groups() for match in found), key=lambda pair: pair[1] == "dev"):
        rows.setdefault(name, Need(name, f"extra {extra}", _version(name), f"pip install 'medunifier[{extra}]'"))
    separate = [Need(name, purpose, _version(name), f"pip install {name}") for name, purpose in _SEPARATE]
    return [*rows.values(), *separate]


def decoders() -> list[Need]:
    """Return the DICOM transfer syntaxes, with those pydicom plug-ins used by ingest that decode them here."""
    rows = []
    for name, syntax in _SYNTAXES.items():
        used = ("pydicom",) if syntax == RLELossless else _PLUGINS
        available = [plugin for plugin in used if plugin in get_decoder(syntax).available_plugins]
        rows.append(Need(name, "", ", ".join(available), "pip install 'pylibjpeg[all]' pyjpegls"))
    return rows


def weights(configs: Path) -> list[Need]:
    """Return the pre-trained weights that training configurations use."""
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    vgg = checkpoints / "vgg16-397923af.pth"
    users = [path.stem for path in sorted((configs / "stage1").glob("*.yaml")) if vgg.name in path.read_text("utf-8")]
    remedy = f"https://download.pytorch.org/models/{vgg.name}, saved in {checkpoints}"
    return [
        Need(vgg.name, f"perceptual loss of {', '.join(users)}", str(vgg) if vgg.is_file() else "", remedy)
    ] if users else []  # fmt: skip


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
