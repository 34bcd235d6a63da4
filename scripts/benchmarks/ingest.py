"""DICOM in, PNG out: `medunifier ingest` with two workers against the plain script that everybody writes.

The script is one process: pydicom, ``apply_voi_lut``, MONOCHROME1 inverted, the picture's own range onto 8 bits,
PIL's resize with the aspect kept, a PNG file an image. Ours does what ingest does, from the tables to the manifest,
its pool's start included: labels, checks, pseudonyms, shards, checksums. Where a worker's time goes is printed too.
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

STUDIES, FILM, COPIES, SIZE, WORKERS = 24, 1536, 4, 256, 2
TARGET = 1.9
REAL_FILMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom" / "chest"
_OPTIONS = SourceOptions(outside_root=True)  # the tables may name links to films elsewhere
STAGES = {"decoding": "decode_dicom", "resizing": "fit_square", "PNG": "encode_png", "reading": "read_at_most"}


def rows(config: BenchConfig) -> list[Row]:
    """Images a second: phantoms as large as a film, and real films where they lie beside the project."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        write_archive(PhantomConfig(out=top / "drawn", studies=STUDIES, size=FILM))
        films = sorted((top / "drawn").rglob("*.dcm"))
        found = [_compared(_linked(films, top / "phantom"), top, f"phantom DICOM of {FILM} px", config)]
        if films := _real_films(top / "try"):
            found.append(_compared(_linked(films, top / "real"), top, "real DICOM, most compressed", config))
        return found


def _linked(films: Sequence[Path], folder: Path) -> Path:
    """An archive in the layout of the csv source, with several names for each film."""
    folder.mkdir()
    names = []
    for copy in range(COPIES):
        for number, film in enumerate(films):
            names.append(f"{copy}-{number}.dcm")
            (folder / names[-1]).symlink_to(film)
    (folder / "manifest.csv").write_text("\n".join(["image", *names]), encoding="utf-8")
    return folder


def _real_films(scratch: Path) -> list[Path]:
    """Those that both sides read."""
    films = []
    for path in sorted(REAL_FILMS.glob("*.dcm")):
        try:
            read_image(path)
            plain_script([path], scratch)
        except Exception:  # noqa: S112 - the failing script checks nothing here
            continue
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        films.append(path)
    return films


def _compared(root: Path, top: Path, what: str, config: BenchConfig) -> Row:
    films = sorted(root.glob("*.dcm"))
    key = top / "key"
    config_of_ours = IngestConfig(
        source="csv",
        root=str(root),
        out=str(top / "ours"),
        size=SIZE,
        workers=WORKERS,
        key_file=str(key),
        shard_studies=len(films) // 10 + 1,
        options=_OPTIONS,
    )

    def ours() -> None:
        shutil.rmtree(top / "ours", ignore_errors=True)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            ingest(config_of_ours)

    def peer() -> None:
        shutil.rmtree(top / "peer", ignore_errors=True)
        plain_script(films, top / "peer")

    row = paired(f"{what}, images/s, {WORKERS} workers", ours, peer, config, TARGET, float(len(films)))
    _print_shares(what, root, top / "shares", load_key(str(key)))
    return row


def plain_script(films: Sequence[Path], out: Path) -> None:
    """The peer."""
    out.mkdir()
    for number, path in enumerate(films):
        dataset = pydicom.dcmread(path)
        pixels = apply_voi_lut(dataset.pixel_array, dataset).astype(np.float32)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            pixels = pixels.max() - pixels
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
        picture = Image.fromarray(pixels.astype(np.uint8))
        scale = SIZE / max(picture.size)
        small = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
        square = Image.new("L", (SIZE, SIZE))
        square.paste(small, ((SIZE - small.width) // 2, (SIZE - small.height) // 2))
        square.save(out / f"{number}.png")


def _print_shares(what: str, root: Path, scratch: Path, key: bytes) -> None:
    """One shard in this process under the profiler: the share of each stage."""
    records = tuple(read_source("csv", root, _OPTIONS).records)
    job = ShardJob(scratch / "0.tar", scratch / "0.json", "csv", records, Transform(SIZE, 8, "findings"), key)
    profile = cProfile.Profile()
    profile.runcall(run_shard_job, job)
    shutil.rmtree(scratch)
    seconds = {name: value[3] for (_, _, name), value in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    whole = seconds["run_shard_job"]
    shares = {stage: seconds[function] / whole for stage, function in STAGES.items()}
    shares["all else"] = 1 - sum(shares.values())
    print(f"{what}: of a worker's time " + ", ".join(f"{share:.0%} {stage}" for stage, share in shares.items()))
