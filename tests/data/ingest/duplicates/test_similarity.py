"""Copies of an image are distinguished from other patients' images, on phantoms and on real radiographs."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunifier.data.images.radiograph import read_radiograph
from medunifier.data.images.resize import fit_square
from medunifier.data.ingest.duplicates.fingerprints import CELLS, FINGERPRINT, fingerprint, thumbnail
from medunifier.data.ingest.duplicates.search import ShardImage, find_duplicates
from medunifier.data.ingest.duplicates.similarity import CANDIDATE, COARSE_NORM, NEAR, ThumbnailSimilarity
from medunifier.data.phantom.study import Phantom

SIZE = 128


def copied(image: np.ndarray, cut_fraction: float) -> np.ndarray:
    """Return a degraded copy: cropped at two sides, brighter, lower contrast, two thirds the size, JPEG."""
    cut = round(cut_fraction * len(image))
    inner = image[cut:, cut:] * 0.88 + 0.06
    small = Image.fromarray(np.asarray(inner * 255 + 0.5, np.uint8))
    small = small.resize((small.width * 2 // 3, small.height * 2 // 3), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75)
    return written(np.asarray(Image.open(file), np.float32) / 255)


def written(image: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> (SIZE, SIZE) uint8, as in a shard."""
    return np.asarray(fit_square(image, SIZE) * 255 + 0.5, np.uint8)


def linked_pairs(patients: list[str], images: list[np.ndarray]) -> set[tuple[int, int]]:
    """Return the index pairs that the search reports as duplicates."""
    named = [ShardImage(patient, str(n), 0, 0, "train", "train-000000.tar") for n, patient in enumerate(patients)]
    prints = np.array([fingerprint(pixels, 0, 0, 0) for pixels in images], FINGERPRINT)
    found = find_duplicates(named, [row["digest"].tobytes() for row in prints], [prints["thumbnail"]])
    return {(int(row.first.study), int(row.image.study)) for row in found.rows}


def test_only_copies_of_phantoms_are_duplicates() -> None:
    phantom = Phantom(2 * SIZE, 0)
    studies = [phantom.study(number) for number in range(0, 360, 3)]
    images = [study.images[0] for study in studies]
    patients = [str(study.patient_id) for study in studies]
    assert len(set(patients)) == len(patients)
    images_and_copies = [*map(written, images), *(copied(image, 0.004) for image in images[::6])]
    found = linked_pairs(patients + patients[::6], images_and_copies)
    expected = {(6 * number, len(images) + number) for number in range(len(images[::6]))}
    assert found == expected


def test_only_copies_of_real_radiographs_are_duplicates(shared_data) -> None:
    """Many patients have several images here, which resemble each other more than images of different patients do."""
    root: Path = shared_data("radiographs")
    with open(root / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["image"].startswith(("nih/px64", "cc-by/", "iu-cc"))]
    rows = rows[::2]
    images = [read_radiograph(root / row["image"], 2 * SIZE) for row in rows]
    patients = [row["patient_id"] or row["study_id"] for row in rows]
    copies = range(0, len(images), 10)
    images_and_copies = [*map(written, images), *(copied(images[number], 0.01) for number in copies)]
    patients += [patients[number] for number in copies]
    found = linked_pairs(patients, images_and_copies)
    assert not [pair for pair in found if patients[pair[0]] != patients[pair[1]]]
    expected = {(number, len(images) + copy) for copy, number in enumerate(copies)}
    assert len(found & expected) >= 0.95 * len(expected)


def test_thumbnail_is_invariant_to_margins_contrast_and_bit_depth() -> None:
    image = Phantom(256, 1).study(4).images[0]
    plain = thumbnail(written(image)).ravel()
    margins = np.pad(image, ((40, 10), (0, 90)))
    for changed in (written(margins), written(image * 0.5 + 0.2), np.asarray(image * 65535, np.uint16)):
        assert np.corrcoef(thumbnail(changed).ravel(), plain)[0, 1] > 0.96
    assert np.corrcoef(thumbnail(written(image[::-1])).ravel(), plain)[0, 1] < 0.9


def test_digests_differ_between_bit_depths() -> None:
    pixels = written(Phantom(SIZE, 1).study(0).images[0])
    digests = [fingerprint(p, 0, 0, 0)["digest"].tobytes() for p in (pixels, pixels.copy(), pixels.astype(np.uint16))]
    assert digests[0] == digests[1] != digests[2]


def test_images_without_details_have_no_duplicates() -> None:
    point, other = np.zeros((128, 128), np.uint8), np.zeros((128, 128), np.uint8)
    point[5, 5], other[70, 9] = 1, 200
    assert linked_pairs(["a", "b", "c"], [point, other, written(Phantom(SIZE, 1).study(0).images[0])]) == set()


def test_products_of_coarse_vectors_are_exact_in_float32() -> None:
    generator = np.random.default_rng(0)
    vectors = ThumbnailSimilarity(generator.integers(0, 256, (40, CELLS, CELLS), dtype=np.uint8)).vectors
    exact = vectors.astype(np.int64) @ vectors.astype(np.int64).T
    assert np.abs(exact).max() < 2**24
    assert np.array_equal(vectors.astype(np.float32) @ vectors.astype(np.float32).T, exact)
    assert np.diag(exact) / COARSE_NORM**2 == pytest.approx(np.ones(40), abs=0.002)
    assert CANDIDATE <= NEAR
