"""Small DICOM files in every transfer syntax, and reproducible damage to them."""

import gzip
import struct
from collections.abc import Callable
from functools import cache
from io import BytesIO
from random import Random

import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

RAMP = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40) * 3  # 0 to 3837: twelve bits


def sample_dicom(pixels: np.ndarray = RAMP, bits: int = 12, syntax: UID = ExplicitVRLittleEndian) -> Dataset:
    """Return a small valid data set with most of what the reader uses: window, rescale, a sequence, private tags."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3"
    dataset.Modality, dataset.ViewPosition, dataset.BodyPartExamined = "CR", "PA", "CHEST"
    dataset.PatientName, dataset.ImageComments = "Sample^Small", "none"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.NumberOfFrames = 1, "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-10"
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = [2**bits // 2, 5], [2**bits, 9], "LINEAR"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.ProcedureCodeSequence = [Dataset()]
    dataset.ProcedureCodeSequence[0].CodeMeaning = "CHEST PA"
    dataset.private_block(0x0019, "A MAKER", create=True).add_new(0x01, "LO", "private")
    dataset.PixelData = pixels.tobytes()
    return dataset


def file_bytes(dataset: Dataset) -> bytes:
    """As it would lie on disk."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _with_tables() -> Dataset:
    dataset = sample_dicom()
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "US", list(range(0, 65536, 16)))
    dataset.ModalityLUTSequence = [table]
    dataset.VOILUTSequence = [table]
    del dataset.RescaleSlope, dataset.RescaleIntercept
    return dataset


def _signed_overlaid() -> Dataset:
    dataset = sample_dicom((RAMP.astype(np.int16) - 2048).astype("<i2"))
    dataset.PixelRepresentation = 1
    for name, value in (("OverlayRows", 32), ("OverlayColumns", 40), ("OverlayBitPosition", 0)):
        dataset.add_new({"OverlayRows": 0x60000010, "OverlayColumns": 0x60000011}.get(name, 0x60000102), "US", value)
    dataset.add_new(0x60003000, "OW", bytes(160))
    return dataset


def _encapsulated(stream: bytes, bits: int, syntax: UID) -> Dataset:
    dataset = sample_dicom(RAMP if bits > 8 else RAMP.astype(np.uint8), bits, syntax)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def _compressed(syntax: UID, **options: object) -> Dataset:
    dataset = sample_dicom()
    dataset.compress(syntax, encoding_plugin="pydicom" if syntax == RLELossless else "pylibjpeg", **options)
    return dataset


def _big_endian() -> Dataset:
    dataset = sample_dicom(syntax=ExplicitVRBigEndian)
    dataset.PixelData = RAMP.astype(">u2").tobytes()
    return dataset


def _bare() -> bytes:
    dataset = sample_dicom()
    del dataset.file_meta
    buffer = BytesIO()
    dataset.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def _jpeg() -> bytes:
    buffer = BytesIO()
    Image.fromarray((RAMP // 16).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def jpeg_lossless(pixels: np.ndarray, bits: int) -> bytes:
    """Process 14 with the left neighbour as predictor (ITU-T T.81 annex H), all 17 categories as codes of 5 bits."""
    rows, columns = pixels.shape
    values = pixels.astype(np.int64)
    guess = np.empty_like(values)
    guess[:, 1:] = values[:, :-1]
    guess[1:, 0] = values[:-1, 0]
    guess[0, 0] = 2 ** (bits - 1)
    coded = ""
    for difference in (values - guess).ravel().tolist():
        size = abs(difference).bit_length()
        low = difference if difference >= 0 else difference + 2**size - 1
        coded += f"{size:05b}" + (f"{low:0{size}b}" if size else "")
    coded += "1" * (-len(coded) % 8)
    entropy = int(coded, 2).to_bytes(len(coded) // 8, "big").replace(b"\xff", b"\xff\x00")
    frame = struct.pack(">HBHHB3B", 11, bits, rows, columns, 1, 1, 0x11, 0)
    table = struct.pack(">HB16B", 36, 0, 0, 0, 0, 0, 17, *[0] * 11) + bytes(range(17))
    scan = struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8\xff\xc3" + frame + b"\xff\xc4" + table + b"\xff\xda" + scan + entropy + b"\xff\xd9"


SAMPLES: dict[str, Callable[[], bytes]] = {
    "explicit": lambda: file_bytes(sample_dicom()),
    "implicit": lambda: file_bytes(sample_dicom(syntax=ImplicitVRLittleEndian)),
    "big-endian": lambda: file_bytes(_big_endian()),
    "tables": lambda: file_bytes(_with_tables()),
    "signed-overlaid": lambda: file_bytes(_signed_overlaid()),
    "deflated": lambda: file_bytes(sample_dicom(syntax=DeflatedExplicitVRLittleEndian)),
    "bare": _bare,
    "run-length": lambda: file_bytes(_compressed(RLELossless)),
    "jpeg": lambda: file_bytes(_encapsulated(_jpeg(), 8, JPEGBaseline8Bit)),
    "jpeg-lossless": lambda: file_bytes(_encapsulated(jpeg_lossless(RAMP, 12), 12, JPEGLosslessSV1)),
    "jpeg-2000-lossless": lambda: file_bytes(_compressed(JPEG2000Lossless)),
    "jpeg-2000": lambda: file_bytes(_compressed(JPEG2000, j2k_cr=[4])),
    # This coding has no encoder here; the file comes with pydicom.
    "jpeg-ls": lambda: _of_pydicom("MR_small_jpeg_ls_lossless.dcm"),
}


def _of_pydicom(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"pydicom comes without its test file {name}"
    with open(path, "rb") as file:
        return file.read()


@cache
def sample(name: str) -> bytes:
    """One of :data:`SAMPLES`, made once."""
    return SAMPLES[name]()


# Rows, Columns, SamplesPerPixel, PhotometricInterpretation, frames, bits, sign, window, rescale, tables, pixels.
_TAGS = [
    struct.pack("<HH", group, element)
    for group, elements in {
        0x0002: (0x0000, 0x0010),
        0x0008: (0x0016, 0x1032),
        0x0028: (
            0x0002, 0x0004, 0x0008, 0x0010, 0x0011, 0x0100, 0x0101, 0x0102, 0x0103, 0x1050, 0x1051, 0x1052, 0x1053,
            0x1056, 0x3000, 0x3002, 0x3006, 0x3010,
        ),
        0x2050: (0x0020,),
        0x6000: (0x0010, 0x0011, 0x0102, 0x3000),
        0x7FE0: (0x0010,),
        0xFFFE: (0xE000, 0xE00D, 0xE0DD),
    }.items()
    for element in elements
]  # fmt: skip
_JPEG_MARKERS = [
    bytes([0xFF, code]) for code in (0x51, 0x52, 0x5C, 0x90, 0xC0, 0xC1, 0xC3, 0xC4, 0xDA, 0xDB, 0xF7, 0xF8)
]
_NUMBERS = (0, 1, 2, 3, 7, 15, 16, 17, 32, 40, 64, 255, 256, 4095, 8192, 16384, 32767, 32768, 65535)
_LENGTHS = (0, 1, 2, 7, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_WORDS = (
    b"MONOCHROME1 ",
    b"MONOCHROME2 ",
    b"RGB ",
    b"PALETTE COLOR ",
    b"-1",
    b"1e309",
    b"nan ",
    b"0 ",
    b"\\\\\\",
    b"",
)


def mutate(data: bytes, random: Random) -> bytes:
    """One to four kinds of damage: bits, bytes, spans, lengths, header fields, markers of a codestream."""
    damaged = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        random.choice(_DAMAGE)(damaged, random)
        if not damaged:
            break
    return bytes(damaged)


def _place(damaged: bytearray, random: Random) -> int:
    """A third of the places lie in the first 1,200 bytes, where the headers are."""
    return random.randrange(min(len(damaged), 1200) if random.random() < 0.33 else len(damaged))


def _flip(damaged: bytearray, random: Random) -> None:
    for _ in range(random.choice((1, 1, 3, 20))):
        damaged[_place(damaged, random)] ^= 1 << random.randrange(8)


def _set(damaged: bytearray, random: Random) -> None:
    damaged[_place(damaged, random)] = random.choice((0, 1, 127, 128, 254, 255, random.randrange(256)))


def _delete(damaged: bytearray, random: Random) -> None:
    at = _place(damaged, random)
    del damaged[at : at + random.choice((1, 2, 4, 100))]


def _insert(damaged: bytearray, random: Random) -> None:
    damaged[(at := _place(damaged, random)) : at] = random.randbytes(random.choice((1, 2, 8, 300)))


def _truncate(damaged: bytearray, random: Random) -> None:
    del damaged[_place(damaged, random) :]


def _repeat(damaged: bytearray, random: Random) -> None:
    at, length = _place(damaged, random), random.choice((2, 8, 64, 700))
    damaged[at:at] = damaged[at : at + length] * random.choice((1, 1, 50))


def _find(damaged: bytearray, random: Random, needles: list[bytes]) -> int | None:
    """Return a random position of a random needle, or None."""
    needle, places, at = random.choice(needles), [], -1
    while (at := damaged.find(needle, at + 1)) >= 0:
        places.append(at)
    return random.choice(places) if places else None


def _field(damaged: bytearray, random: Random) -> None:
    """Overwrite the value of an element with a number or a word."""
    at = _find(damaged, random, _TAGS)
    if at is not None:
        new = struct.pack("<H", random.choice(_NUMBERS)) if random.random() < 0.6 else random.choice(_WORDS)
        damaged[at + 8 : at + 8 + len(new)] = new


def _length(damaged: bytearray, random: Random) -> None:
    """The length of an element, in two or four bytes, or of a fragment or its offset table."""
    at = _find(damaged, random, _TAGS)
    if at is not None:
        length = random.choice(_LENGTHS)
        place, form = random.choice(((4, "<I"), (8, "<I"), (6, "<H")))
        damaged[at + place : at + place + struct.calcsize(form)] = struct.pack(
            form, length & (2 ** (8 * struct.calcsize(form)) - 1)
        )


def _kind(damaged: bytearray, random: Random) -> None:
    """The VR of an element."""
    at = _find(damaged, random, _TAGS)
    if at is not None:
        damaged[at + 4 : at + 6] = random.choice(
            (b"SQ", b"OB", b"OW", b"UN", b"US", b"DS", b"IS", b"FD", b"AT", b"??")
        )


def _codestream(damaged: bytearray, random: Random) -> None:
    """A number in a segment of a compressed stream: sizes, counts of components and tiles, tables, precision."""
    at = _find(damaged, random, _JPEG_MARKERS)
    if at is not None:
        place = at + 2 + random.randrange(48)
        if place + 4 <= len(damaged):
            form = random.choice((">B", ">H", ">I"))
            number = random.choice(_NUMBERS + _LENGTHS) & (2 ** (8 * struct.calcsize(form)) - 1)
            damaged[place : place + struct.calcsize(form)] = struct.pack(form, number)


_DAMAGE: list[Callable[[bytearray, Random], None]] = [
    _flip, _flip, _set, _delete, _insert, _truncate, _repeat, _field, _field, _length, _kind,
    _codestream, _codestream, _codestream, _codestream,
]  # fmt: skip


def mutated_file(number: int) -> tuple[str, bytes]:
    """The name of the sample and the damaged file, which depend on the number alone; every fifth is gzipped."""
    random = Random(number)
    name = list(SAMPLES)[number % len(SAMPLES)]
    damaged = mutate(sample(name), random)
    if number % 5 == 0:
        damaged = gzip.compress(damaged, mtime=0)
        if number % 2 == 0:
            damaged = mutate(damaged, random)
    return name, damaged
