"""Packages, decoders and weights: what is there, what is not, and how it is got."""

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

# Packages that no extra of ours brings: name, purpose.
_OWN_CHOICE = (
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
    """One thing: its name, what it is for, what is there of it ("" = missing), how it is got."""

    name: str
    purpose: str
    found: str
    remedy: str = ""


def packages() -> list[Need]:
    """Required packages with their versions."""
    return [Need(name, "", _version(name), "pip install medunifier") for name in REQUIRED]


def optional_packages() -> list[Need]:
    """Optional ones, each with the extra that brings it, as the installed project names them."""
    found = filter(None, map(_EXTRA.match, importlib.metadata.requires("medunifier") or []))
    rows: dict[str, Need] = {}
    # Developers need what users need and more: a package is got by the extra of its purpose.
    for name, extra in sorted((match.groups() for match in found), key=lambda pair: pair[1] == "dev"):
        rows.setdefault(name, Need(name, f"extra {extra}", _version(name), f"pip install 'medunifier[{extra}]'"))
    own = [Need(name, purpose, _version(name), f"pip install {name}") for name, purpose in _OWN_CHOICE]
    return [*rows.values(), *own]


def decoders() -> list[Need]:
    """Which compressed DICOM can be read here, by those plug-ins of pydicom that ingest uses."""
    rows = []
    for name, syntax in _SYNTAXES.items():
        used = ("pydicom",) if syntax == RLELossless else _PLUGINS
        there = [plugin for plugin in used if plugin in get_decoder(syntax).available_plugins]
        rows.append(Need(name, "", ", ".join(there), "pip install 'pylibjpeg[all]' pyjpegls"))
    return rows


def weights(configs: Path) -> list[Need]:
    """Files of pre-trained nets that the trainings ask for."""
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    vgg = checkpoints / "vgg16-397923af.pth"
    users = [path.stem for path in sorted((configs / "stage1").glob("*.yaml")) if vgg.name in path.read_text("utf-8")]
    remedy = f"https://download.pytorch.org/models/{vgg.name}, put into {checkpoints}"
    return [
        Need(vgg.name, f"perceptual loss of {', '.join(users)}", str(vgg) if vgg.is_file() else "", remedy)
    ] if users else []  # fmt: skip


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
