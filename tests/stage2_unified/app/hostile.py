"""Two hundred hostile uploads, forty of each kind."""

import gzip
import io
import struct
import zlib
from random import Random

import numpy as np
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.data.dicom_samples import file_bytes, sample_dicom

SCRIPTS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>", "javascript:alert(1)",
    "${7*7}{{7*7}}", "'; DROP TABLE studies; --", "=HYPERLINK(\"http://127.0.0.1:9\")", "%s%n%x", "`touch pwned`",
    "$(touch pwned)",
)  # fmt: skip
_TYPES = {
    "gif": b"GIF89a", "bmp": b"BM", "tif": b"II*\0", "webp": b"RIFF\0\0\0\0WEBPVP8 ", "psd": b"8BPS",
    "ico": b"\0\0\1\0", "jp2": b"\0\0\0\x0cjP  \r\n\x87\n", "exe": b"MZ", "so": b"\x7fELF", "zip": b"PK\3\4",
    "7z": b"7z\xbc\xaf'\x1c", "rar": b"Rar!\x1a\x07", "bz2": b"BZh9", "xz": b"\xfd7zXZ\0", "zst": b"(\xb5/\xfd",
    "tar": bytes(257) + b"ustar", "pdf": b"%PDF-1.7\n", "ps": b"%!PS\n", "docx": b"PK\3\4word/",
    "mp4": b"\0\0\0 ftypmp42", "wav": b"RIFF\0\0\0\0WAVE",
    "class": b"\xca\xfe\xba\xbe", "pyc": b"\xa7\r\r\n", "sqlite": b"SQLite format 3\0",
    "pt": b"\x80\x02cos\nsystem\n(S'touch pwned'\ntR.", "npy": b"\x93NUMPY\1\0", "h5": b"\x89HDF\r\n\x1a\n",
    "safetensors": struct.pack("<Q", 2**63) + b"{}", "html": b"<html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "xml": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "php": b"<?php system($_GET[0]); ?>",
    "sh": b"#!/bin/sh\ntouch pwned\n", "py": b"import os; os.system('touch pwned')\n", "json": b'{"a": ' * 200,
    "yaml": b"!!python/object/apply:os.system ['touch pwned']\n", "csv": b"=cmd|' /C calc'!A0\n", "txt": b"a letter",
    "nii": struct.pack("<i", 348), "empty": b"",
}  # fmt: skip
_NAMES = (
    "../../../../tmp/pwned.png", "..\\..\\pwned.dcm", "/etc/cron.d/pwned", "C:\\Windows\\pwned.dcm", "..", ".", "",
    "~/.bashrc", "..%2f..%2fetc%2fpasswd", "%00.png", "image.png\0.dcm", "image.dcm\r\nX-Pwned: 1", "-rf.png",
    "--help", "CON", "NUL.dcm", "image.dcm::$DATA", "a" * 300 + ".dcm", "\u202egnp.mlif", "\ud7ff\ufffe.dcm",
    "....//....//pwned", "file:///etc/passwd", "http://127.0.0.1:9/image.dcm", "//127.0.0.1/share/image.dcm",
    "image.dcm;touch pwned",
    "|touch pwned", "&touch pwned&", "film\u0301.dcm", " ", "image.dcm/", "examples/phantom-1.png", "*.dcm", "?.dcm",
    *SCRIPTS[:7],
)  # fmt: skip


_MEBIBYTE = bytes(2**20)


def hostile_uploads() -> dict[str, list[tuple[str, bytes]]]:
    """Return 40 (name, content) pairs per kind, the same at every call."""
    rng = Random(0)
    return {
        "wrong type": [(f"image.{name}", start and start + rng.randbytes(600)) for name, start in _TYPES.items()],
        "bomb": _bombs(),
        "truncated": [(name, content[: int(len(content) * part)]) for name, content, part in _cut(rng)],
        "path name": [(name, b"\x89PNG\r\n\x1a\n" + rng.randbytes(40)) for name in _NAMES],
        "script in a header": [(f"image-{n}.dcm", content) for n, content in enumerate(_scripted())],
    }


def png(width: int, height: int, depth: int = 8, colour: int = 0, body: bytes = b"") -> bytes:
    """Return a PNG with an arbitrary header."""
    return b"\x89PNG\r\n\x1a\n" + b"".join([
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        _chunk(b"IDAT", body), _chunk(b"IEND", b""),
    ])  # fmt: skip


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _deflated(mebibytes: int) -> bytes:
    """Return zeros as a deflate stream: one block, repeated, since compressing 600 MiB takes seconds."""
    pack = zlib.compressobj(6, wbits=-zlib.MAX_WBITS)
    block = pack.compress(bytes(2**20)) + pack.flush(zlib.Z_FULL_FLUSH)
    return block * mebibytes + pack.flush()


def _gzipped(mebibytes: int) -> bytes:
    check = 0
    for _ in range(mebibytes):
        check = zlib.crc32(_MEBIBYTE, check)
    return b"\x1f\x8b\x08" + bytes(7) + _deflated(mebibytes) + struct.pack("<II", check, mebibytes * 2**20)


def _bombs() -> list[tuple[str, bytes]]:
    """Decompression bombs: images, gzip, gzip within gzip, deflated DICOM, text chunks."""
    sides = (8_500, 9_999, 12_000, 16_000, 16_384, 16_385, 30_000, 65_535, 2**20, 2**31 - 1)
    small = zlib.compress(bytes(1_000_000))
    images = [png(side, side, depth, 0, small) for depth in (8, 16) for side in sides]
    images += [png(side, 1, 8, 2, small) for side in sides[-6:]]
    inflated = _gzipped(600)
    packed = [inflated, gzip.compress(inflated), inflated[: len(inflated) // 2], b"\x1f\x8b" * 5000]
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(80 * _MEBIBYTE))
    whole = png(64, 64, body=zlib.compress(bytes(65 * 64)))
    images.append(whole[:33] + text + whole[33:])
    deflated = file_bytes(sample_dicom(syntax=DeflatedExplicitVRLittleEndian))
    deflated = deflated[: deflated.index(DeflatedExplicitVRLittleEndian.encode()) + 22] + _deflated(600)
    files = []
    for rows, columns, frames in ((65_535, 65_535, 1), (65_535, 1_100, 1), (20_000, 20_000, 1), (32, 40, 2**31 - 1),
                                  (32, 40, 10_000), (1, 1, 1), (0, 0, 1), (65_535, 15, 1)):  # fmt: skip
        dataset = sample_dicom()
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
        files.append(file_bytes(dataset))
    return (
        [(f"bomb-{n}.png", content) for n, content in enumerate(images)]
        + [(f"bomb-{n}.dcm.gz", content) for n, content in enumerate(packed)]
        + [(f"bomb-{n}.dcm", content) for n, content in enumerate([deflated, *files])]
    )


def _cut(rng: Random) -> list[tuple[str, bytes, float]]:
    """Return valid files of all formats, and the fraction of each that is kept."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    pictures = {}
    for kind in ("png", "jpeg"):
        noise.save(file := io.BytesIO(), kind)
        pictures[f"image.{kind}"] = file.getvalue()
    files = [*pictures.items(), ("image.dcm", file_bytes(sample_dicom())),
             ("image.dcm.gz", gzip.compress(file_bytes(sample_dicom())))]  # fmt: skip
    return [(name, content, (step + rng.random()) / 11) for name, content in files for step in range(10)]


def _scripted() -> list[bytes]:
    """DICOM files with scripts in their text elements, each lacking something that an image needs."""
    files = []
    for way in range(4):
        for script in SCRIPTS:
            dataset = sample_dicom()
            for keyword in ("PatientName", "StudyDescription", "ViewPosition", "BodyPartExamined", "Manufacturer"):
                setattr(dataset, keyword, script)
            if way == 0:
                dataset.Rows = 1
            elif way == 1:
                del dataset.PixelData
            elif way == 2:
                dataset.PhotometricInterpretation = script[:16]
            else:
                dataset.PixelData = bytes(len(dataset.PixelData))
            files.append(file_bytes(dataset))
    return files
