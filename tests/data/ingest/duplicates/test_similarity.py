"""A copy of a film is told from another patient's film, on phantoms and on real ones."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunifier.data.images.pixels import fit_square
from medunifier.data.images.radiograph import read_radiograph
from medunifier.data.ingest.duplicates.fingerprints import CELLS, FINGERPRINT, fingerprint, thumbnail
from medunifier.data.ingest.duplicates.search import Picture, find_duplicates
from medunifier.data.ingest.duplicates.similarity import CANDIDATE, COARSE_NORM, NEAR, Likeness
from medunifier.data.phantom.study import Phantom

SIZE = 128


def copied(film: np.ndarray, cut_share: float) -> np.ndarray:
    """Cut at two sides, brighter, of less contrast, two thirds as large, through JPEG; as in a shard."""
    cut = round(cut_share * len(film))
    inner = film[cut:, cut:] * 0.88 + 0.06
    image = Image.fromarray(np.asarray(inner * 255 + 0.5, np.uint8))
    image = image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return written(np.asarray(Image.open(file), np.float32) / 255)


def written(film: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> (SIZE, SIZE) uint8, as in a shard."""
    return np.asarray(fit_square(film, SIZE) * 255 + 0.5, np.uint8)


def ties(patients: list[str], pictures: list[np.ndarray]) -> set[tuple[int, int]]:
    """Numbers of the pictures that are tied to each other."""
    named = [Picture(patient, str(n), 0, 0, "train", "train-000000.tar") for n, patient in enumerate(patients)]
    prints = np.array([fingerprint(pixels, 0, 0, 0) for pixels in pictures], FINGERPRINT)
    found = find_duplicates(named, [row["digest"].tobytes() for row in prints], [prints["thumbnail"]])
    return {(int(row.first.study), int(row.picture.study)) for row in found.rows}


def test_phantoms_of_other_patients_are_no_duplicates_and_copies_are_found() -> None:
    phantom = Phantom(2 * SIZE, 0)
    studies = [phantom.study(number) for number in range(0, 360, 3)]
    films = [study.images[0] for study in studies]
    patients = [str(study.patient_id) for study in studies]
    assert len(set(patients)) == len(patients)
    pictures = [*map(written, films), *(copied(film, 0.004) for film in films[::6])]
    found = ties(patients + patients[::6], pictures)
    expected = {(6 * number, len(films) + number) for number in range(len(films[::6]))}
    assert found == expected


def test_real_films_of_other_patients_are_no_duplicates_and_copies_are_found(shared_data) -> None:
    """Many patients have several films here, which are like each other as no strangers' are."""
    root: Path = shared_data("radiographs")
    with open(root / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["image"].startswith(("nih/px64", "cc-by/", "iu-cc"))]
    rows = rows[::2]
    films = [read_radiograph(root / row["image"], 2 * SIZE) for row in rows]
    patients = [row["patient_id"] or row["study_id"] for row in rows]
    copies = range(0, len(films), 10)
    pictures = [*map(written, films), *(copied(films[number], 0.01) for number in copies)]
    patients += [patients[number] for number in copies]
    found = ties(patients, pictures)
    assert not [pair for pair in found if patients[pair[0]] != patients[pair[1]]]
    expected = {(number, len(films) + place) for place, number in enumerate(copies)}
    assert len(found & expected) >= 0.95 * len(expected)


def test_margins_shades_and_size_leave_a_thumbnail_as_it_is() -> None:
    film = Phantom(256, 1).study(4).images[0]
    plain = thumbnail(written(film)).ravel()
    margins = np.pad(film, ((40, 10), (0, 90)))
    for changed in (written(margins), written(film * 0.5 + 0.2), np.asarray(film * 65535, np.uint16)):
        assert np.corrcoef(thumbnail(changed).ravel(), plain)[0, 1] > 0.96
    assert np.corrcoef(thumbnail(written(film[::-1])).ravel(), plain)[0, 1] < 0.9


def test_equal_pixels_of_another_depth_are_another_picture() -> None:
    pixels = written(Phantom(SIZE, 1).study(0).images[0])
    digests = [fingerprint(p, 0, 0, 0)["digest"].tobytes() for p in (pixels, pixels.copy(), pixels.astype(np.uint16))]
    assert digests[0] == digests[1] != digests[2]


def test_pictures_without_details_are_like_no_other() -> None:
    point, other = np.zeros((128, 128), np.uint8), np.zeros((128, 128), np.uint8)
    point[5, 5], other[70, 9] = 1, 200
    assert ties(["a", "b", "c"], [point, other, written(Phantom(SIZE, 1).study(0).images[0])]) == set()


def test_products_of_coarse_vectors_are_exact_in_float32() -> None:
    draw = np.random.default_rng(0)
    vectors = Likeness(draw.integers(0, 256, (40, CELLS, CELLS), dtype=np.uint8)).vectors
    exact = vectors.astype(np.int64) @ vectors.astype(np.int64).T
    assert np.abs(exact).max() < 2**24
    assert np.array_equal(vectors.astype(np.float32) @ vectors.astype(np.float32).T, exact)
    assert np.diag(exact) / COARSE_NORM**2 == pytest.approx(np.ones(40), abs=0.002)
    assert CANDIDATE <= NEAR
