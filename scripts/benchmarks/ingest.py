"""Benchmark DICOM to PNG conversion: `medunifier ingest` with two workers against a minimal script.

The script is one process: pydicom, ``apply_voi_lut``, MONOCHROME1 inverted, min-max scaling to 8 bits,
PIL's resize with the aspect ratio kept, a PNG file per image. Ours runs all of ingest, from the tables to the
manifest, including the pool's start: labels, checks, pseudonyms, shards, checksums. A profile of a worker is printed.
"""

import cProfile
import pstats
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels.processing import apply_voi_lut

from medunifier.bench import BenchConfig, Row, paired
from medunifier.data.images.radiograph import read_image
from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.ingest.pseudonyms import load_key
from medunifier.data.ingest.shard_job import ShardJob, Transform, run_shard_job
from medunifier.data.phantom.command import PhantomConfig, write_archive
from medunifier.data.sources import SourceOptions, read_source

STUDIES, PHANTOM_SIZE, COPIES, SIZE, WORKERS = 24, 1536, 4, 256, 2
TARGET = 1.9
REAL_IMAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom" / "chest"
_OPTIONS = SourceOptions(outside_root=True)  # the tables name symbolic links to images elsewhere
STAGES = {"decoding": "decode_dicom", "resizing": "fit_square", "PNG": "encode_png", "reading": "read_at_most"}


def rows(config: BenchConfig) -> list[Row]:
    """Measure images per second: full-size phantoms, and real radiographs if the files are available."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        write_archive(PhantomConfig(out=top / "generated", studies=STUDIES, size=PHANTOM_SIZE))
        paths = sorted((top / "generated").rglob("*.dcm"))
        found = [_compared(_linked(paths, top / "phantom"), top, f"phantom DICOM of {PHANTOM_SIZE} px", config)]
        if paths := _real_images(top / "try"):
            found.append(_compared(_linked(paths, top / "real"), top, "real DICOM, most compressed", config))
        return found


def _linked(paths: Sequence[Path], folder: Path) -> Path:
    """Create an archive in the layout of the csv source, with several links to each image."""
    folder.mkdir()
    names = []
    for copy in range(COPIES):
        for number, path in enumerate(paths):
            names.append(f"{copy}-{number}.dcm")
            (folder / names[-1]).symlink_to(path)
    (folder / "manifest.csv").write_text("\n".join(["image", *names]), encoding="utf-8")
    return folder


def _real_images(scratch: Path) -> list[Path]:
    """Return the files that both implementations can read."""
    paths = []
    for path in sorted(REAL_IMAGES.glob("*.dcm")):
        try:
            read_image(path)
            plain_script([path], scratch)
        except Exception:  # noqa: S112 - the failing script checks nothing here
            continue
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        paths.append(path)
    return paths


def _compared(root: Path, top: Path, what: str, config: BenchConfig) -> Row:
    paths = sorted(root.glob("*.dcm"))
    key = top / "key"
    config_of_ours = IngestConfig(
        source="csv",
        root=str(root),
        out=str(top / "ours"),
        size=SIZE,
        workers=WORKERS,
        key_file=str(key),
        shard_studies=len(paths) // 10 + 1,
        options=_OPTIONS,
    )

    def ours() -> None:
        shutil.rmtree(top / "ours", ignore_errors=True)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            ingest(config_of_ours)

    def peer() -> None:
        shutil.rmtree(top / "peer", ignore_errors=True)
        plain_script(paths, top / "peer")

    row = paired(f"{what}, images/s, {WORKERS} workers", ours, peer, config, TARGET, float(len(paths)))
    _print_profile(what, root, top / "profile", load_key(str(key)))
    return row


def plain_script(paths: Sequence[Path], out: Path) -> None:
    """Convert the files as a minimal script does (the peer)."""
    out.mkdir()
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        pixels = apply_voi_lut(dataset.pixel_array, dataset).astype(np.float32)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            pixels = pixels.max() - pixels
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
        image = Image.fromarray(pixels.astype(np.uint8))
        scale = SIZE / max(image.size)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        square = Image.new("L", (SIZE, SIZE))
        square.paste(small, ((SIZE - small.width) // 2, (SIZE - small.height) // 2))
        square.save(out / f"{number}.png")


def _print_profile(what: str, root: Path, scratch: Path, key: bytes) -> None:
    """Profile one shard in this process and print the fraction of time per stage."""
    records = tuple(read_source("csv", root, _OPTIONS).records)
    job = ShardJob(scratch / "0.tar", scratch / "0.json", "csv", records, Transform(SIZE, 8, "findings"), key)
    profile = cProfile.Profile()
    profile.runcall(run_shard_job, job)
    shutil.rmtree(scratch)
    seconds = {name: value[3] for (_, _, name), value in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    total = seconds["run_shard_job"]
    fractions = {stage: seconds[function] / total for stage, function in STAGES.items()}
    fractions["all else"] = 1 - sum(fractions.values())
    print(
        f"{what}: of a worker's time " + ", ".join(f"{fraction:.0%} {stage}" for stage, fraction in fractions.items())
    )
