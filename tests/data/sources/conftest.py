"""Fixtures for small trees in the layout of each data set: documented tables, images of 40 x 32 pixels."""

import csv
import gzip
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from medunifier.data.ingest.check import check_source
from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.records import SPLITS
from medunifier.data.shards.dataset import ShardDataset
from medunifier.data.sources import Archive, SourceOptions, read_source


@pytest.fixture(scope="session")
def image_file() -> Callable[..., Path]:
    """Return ``write(path)``, which writes a radiograph in the suffix's format; pixels depend on the path."""

    def write(path: Path, bits: int = 8) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(crc32(str(path).encode())).integers(0, 2**bits, (40, 32))
        pixels = pixels.astype(np.uint8 if bits == 8 else np.uint16)
        if path.suffix in (".dcm", ".dicom"):
            dataset = Dataset()
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3"
            dataset.PatientID = str(crc32(str(path).encode()))
            dataset.Rows, dataset.Columns = pixels.shape
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            dataset.BitsAllocated = dataset.BitsStored = bits
            dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
            dataset.PixelData = pixels.tobytes()
            dataset.save_as(path, enforce_file_format=True)
        else:
            Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def table() -> Callable[..., Path]:
    """Return ``write(path, header, rows)``, which writes a CSV file, gzipped if the name ends with ``.gz``."""

    def write(path: Path, header: str, rows: Sequence[Sequence[object]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header.split(","))
            writer.writerows(rows)
        return path

    return write


@pytest.fixture(scope="session")
def read() -> Callable[..., Archive]:
    """Return ``read(source, root, **options)``, which returns the archive of a source."""
    return lambda source, root, **options: read_source(source, root, SourceOptions(**options))


@pytest.fixture
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[dict, list[dict]]]:
    """Return ``run(source, root, **options)``, which ingests a tree and returns the manifest and all samples' json.

    Also compares the counts of ``--check`` with those of ingest.
    """

    def run(source: str, root: Path, **options: object) -> tuple[dict, list[dict]]:
        out = tmp_path_factory.mktemp("shards")
        before = sorted(root.rglob("*"))
        archive = read_source(source, root, SourceOptions(**options))
        check = check_source(archive, source, str(root), images=0, workers=1, cluster="")
        assert sorted(root.rglob("*")) == before
        key = tmp_path_factory.mktemp("key") / "pseudonym.key"
        key.write_text("00" * 32, encoding="ascii")  # fixed, since the sampled splits depend on the key
        config = IngestConfig(
            source=source,
            root=str(root),
            out=str(out),
            size=32,
            workers=1,
            key_file=str(key),
            options=SourceOptions(**options),
        )
        manifest = ingest(config)
        counts = manifest["counts"]
        assert (check.counts["studies"], check.counts["patients"]) == (counts["studies"], counts["patients"])
        assert len(check.missing) + len(check.unreadable) == counts["rejected_images"]
        assert check.decoded + len(check.missing) == check.counts["images"]
        assert check.problems == counts["source_problems"]
        assert check.labels == counts["label_names"]
        stated = {name for record in archive.records for name, value in (record.labels or {}).items() if value == 1}
        assert stated <= {row["observation"] for row in check.labels.values()}
        samples = [
            dataset[number]
            for split in SPLITS
            if manifest["splits"][split]
            for dataset in [ShardDataset(out, split)]
            for number in range(len(dataset))
        ]
        assert all(len(sample.images) == len(sample.info["views"]) for sample in samples)
        infos = [sample.info for sample in samples]
        assert check.counts["studies with labels"] == sum(bool(info["labels"]) for info in infos)
        for reason in ("without_headers", "without_findings_or_impression"):
            name = {"without_headers": "without section headers"}.get(reason, "without findings and impression")
            assert check.counts[f"reports {name}"] == counts[f"reports_{reason}"]
        if not counts["rejected_images"]:
            unknown = check.views.get("not stated", 0) + check.views.get("other", 0)
            views = Counter(view for info in infos for view in info["views"])
            assert (
                Counter(check.views) - Counter({"not stated": unknown, "other": unknown})
                == views - Counter({"": views[""]})
                and unknown == views[""]
            )
        return manifest, infos

    return run
