"""Duplicate images: grouping, removal across splits, and the files that ingest writes."""

import csv
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.ingest.duplicates.fingerprints import FINGERPRINT, fingerprint
from medunifier.data.ingest.duplicates.search import Duplicates, ShardImage, find_duplicates
from medunifier.data.ingest.duplicates.similarity import NEAR, ThumbnailSimilarity
from medunifier.data.ingest.pseudonyms import DEFAULT_KEY_FILE, load_key, pseudonym
from medunifier.data.phantom.study import Phantom
from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from tests.data.ingest.duplicates.test_similarity import copied

SIZE = 64


def _noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(16, 16)).repeat(8, 0).repeat(8, 1)


def _fingerprints(images: list[np.ndarray]) -> np.ndarray:
    grey = (np.asarray(np.clip(values * 30 + 128, 1, 255), np.uint8) for values in images)
    return np.array([fingerprint(pixels, 0, 0, 0) for pixels in grey], FINGERPRINT)


def _image(number: int, split: str = "train") -> ShardImage:
    return ShardImage(f"p{number}", f"s{number:03d}", 0, 0, split, f"{split}-000000.tar")


def _found(pictures: list[ShardImage], prints: np.ndarray) -> Duplicates:
    """Search with the stricter splits first, and the thumbnails in blocks of different sizes."""
    order = sorted(range(len(pictures)), key=lambda n: -("train", "validate", "test").index(pictures[n].split))
    blocks = np.split(prints["thumbnail"][order], [1, 1, 3])
    return find_duplicates([pictures[n] for n in order], [prints["digest"][n].tobytes() for n in order], blocks)


def test_images_linked_through_a_third_are_one_group() -> None:
    held_out, other = _noise(0), _noise(1)
    mixed = [(1 - weight) * held_out + weight * other for weight in (0.36, 0.2, 0)]
    prints = _fingerprints([*mixed, _noise(2)])
    similarity = ThumbnailSimilarity(prints["thumbnail"])
    assert similarity.correlation(0, 1) >= NEAR and similarity.correlation(1, 2) >= NEAR > similarity.correlation(
        0, 2
    )
    pictures = [_image(0), _image(1, "validate"), _image(2, "test"), _image(3)]
    found = _found(pictures, prints)
    assert found.cross_split == {pictures[0]: "test", pictures[1]: "test"}
    assert {(row.image, row.first) for row in found.rows} == {
        (pictures[1], pictures[2]),
        (pictures[0], pictures[1]),
    }
    assert found.counts() == {"exact": 0, "near": 2, "in_another_split": 2, "of_another_patient": 2}


def test_n_equal_images_make_n_minus_one_rows_and_none_is_removed_within_a_split() -> None:
    prints = _fingerprints([_noise(0)] * 20 + [_noise(1)] * 3)
    pictures = [_image(n) for n in range(20)] + [_image(20, "test"), _image(21), _image(22, "validate")]
    found = _found(pictures, prints)
    assert found.counts() == {"exact": 21, "near": 0, "in_another_split": 2, "of_another_patient": 21}
    assert found.cross_split == {pictures[21]: "test", pictures[22]: "test"}
    assert {row.first.study for row in found.rows} == {"s000", "s020"}
    assert find_duplicates([], [], []).rows == []
    with pytest.raises(ValueError, match="stricter splits must come first"):
        find_duplicates(pictures, [bytes(1)] * 23, [])


def test_the_result_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [_noise(n // 3) * (1 + 0.2 * (n % 3)) + 0.1 * _noise(1000 + n) for n in range(60)]
    named = [_image(n, ("train", "validate", "test")[n % 3]) for n in range(60)]
    prints = _fingerprints(pictures)
    whole = _found(named, prints)
    assert whole.counts()["near"] == 40 == len(whole.cross_split)
    monkeypatch.setattr("medunifier.data.ingest.duplicates.search._ROWS", 7)
    monkeypatch.setattr("medunifier.data.ingest.duplicates.search._COLUMNS", 11)
    parts = _found(named, prints)
    assert parts.cross_split == whole.cross_split and len(parts.rows) == len(whole.rows)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty patients with official splits. Images of train are repeated: one exactly and one nearly in test, one in
    validate, one for another patient in train, one in the same study; one view of a two-view study is repeated."""
    root = tmp_path_factory.mktemp("tree")
    phantom = Phantom(128, 0)
    rows = ["image,patient_id,study_id,view,findings,split"]

    def add(name: str, pixels: np.ndarray, patient: int, study: int, split: str) -> None:
        Image.fromarray(np.asarray(pixels * 255 + 0.5, np.uint8)).save(root / name)
        rows.append(f"{name},Miller{patient},Visit{study},PA,Lungs are clear.,{split}")

    images = [phantom.study(20 * number).images[0] for number in range(30)]
    for number, image in enumerate(images):
        add(f"{number}.png", image, number, number, ("train", "train", "validate", "test")[number % 4])
    add("two.png", phantom.study(777).images[0], 0, 0, "train")
    add("exact.png", images[0], 40, 40, "test")
    add("near.png", copied(images[1], 0.01) / 255, 41, 41, "test")
    add("validate.png", images[4], 42, 42, "validate")
    add("stranger.png", images[5], 43, 43, "train")
    add("twice.png", images[8], 8, 8, "train")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def _config(tree: Path, out: Path, **changes: object) -> IngestConfig:
    options = {"source": "csv", "root": str(tree), "out": str(out), "size": SIZE, "workers": 1, "shard_studies": 5}
    return IngestConfig(**(options | changes))  # type: ignore[arg-type]


def _contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def _table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _study(number: int) -> str:
    """Return the pseudonym of a study of the tree, which its source identifies by patient and study."""
    return pseudonym(load_key(DEFAULT_KEY_FILE), "study", f"Miller{number}/Visit{number}")


def _reported(out: Path) -> set[tuple[str, ...]]:
    columns = ("kind", "study_id", "view", "split", "first_study_id", "first_view", "first_split", "same_patient")
    return {tuple(row[column] for column in columns) for row in _table(out / "duplicates.csv")}


def test_report_lists_every_planted_duplicate_and_changes_no_shard(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = ingest(_config(tree, tmp_path / "report"))
    printed = capsys.readouterr()
    ingest(_config(tree, tmp_path / "ignore", duplicates="ignore"))
    report, ignore = _contents(tmp_path / "report"), _contents(tmp_path / "ignore")
    assert report.keys() - ignore.keys() == {"duplicates.csv"}
    assert {name for name in ignore if report[name] != ignore[name]} == {"manifest.json"}

    counts = {"exact": 4, "near": 1, "in_another_split": 3, "of_another_patient": 4}
    assert manifest["duplicates"] == {"option": "report", **counts}
    found = _reported(tmp_path / "report")
    assert {row for row in found if row[3] != row[6]} == {
        ("exact", _study(0), "0", "train", _study(40), "0", "test", "no"),
        ("near", _study(1), "0", "train", _study(41), "0", "test", "no"),
        ("exact", _study(4), "0", "train", _study(42), "0", "validate", "no"),
    }
    assert ("exact", _study(8), "1", "train", _study(8), "0", "train", "yes") in found
    near = next(row for row in _table(tmp_path / "report" / "duplicates.csv") if row["kind"] == "near")
    assert 0 < float(near["distance"]) <= 1 - NEAR
    assert "4 exact, 1 near" in printed.err and "--duplicates remove" in printed.err
    written = b"".join(path.read_bytes() for path in (tmp_path / "report").rglob("*"))
    assert b"Miller" not in written and b"Visit" not in written and b".png," not in written


def _samples(out: Path) -> Iterator[tuple[str, str, list[bytes], dict[str, object]]]:
    """Yield (shard, key, images, json), read with the standard library only."""
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
        for key in dict.fromkeys(name.partition(".")[0] for name in members):
            pictures = [members[f"{key}.{n}.png"] for n in range(9) if f"{key}.{n}.png" in members]
            yield path.name, key, pictures, json.loads(members[f"{key}.json"])


def test_removal_drops_only_duplicates_of_a_stricter_split(tree: Path, tmp_path: Path) -> None:
    ingest(_config(tree, tmp_path / "report"))
    manifest = ingest(_config(tree, tmp_path / "remove", duplicates="remove"))
    removed = {(_study(0), 0): "test", (_study(1), 0): "test", (_study(4), 0): "validate"}
    expected = []
    for shard, key, pictures, info in _samples(tmp_path / "report"):
        remaining = [number for number in range(len(pictures)) if (key, number) not in removed]
        if remaining:
            views = info["views"]
            assert isinstance(views, list)
            kept = {**info, "views": [views[number] for number in remaining]}
            expected.append((shard, key, [pictures[number] for number in remaining], kept))
    found = list(_samples(tmp_path / "remove"))
    assert found == expected
    assert len(next(row for row in found if row[1] == _study(0))[2]) == 1  # its other view is kept
    assert not {_study(1), _study(4)} & {row[1] for row in found}

    rejects = {(row["study_id"], int(row["view"])): row["reason"] for row in _table(tmp_path / "remove/rejects.csv")}
    assert rejects == {key: f"duplicate of an image in {split}" for key, split in removed.items()}
    assert manifest["duplicates"]["option"] == "remove" and manifest["counts"]["rejected_images"] == 3
    assert manifest["counts"]["kept_studies"] == len(found)
    assert _reported(tmp_path / "remove") == _reported(tmp_path / "report")
    assert not (tmp_path / "remove" / ".ingest").exists()
    for split, rows in manifest["splits"].items():
        assert len(list(ShardDataset(tmp_path / "remove", split).infos())) == sum(r["samples"] for r in rows.values())
        for name, row in rows.items():
            assert sha256_file(tmp_path / "remove" / name) == row["sha256"]
    with pytest.raises(UserError, match="other settings"):
        ingest(_config(tree, tmp_path / "remove"))


class _Killed(BaseException):
    """Stands in for SIGKILL: no code of the package catches it."""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_removal_killed_after_any_rename_resumes_to_the_same_bytes(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Every start does one to three renames (shard, index, report, then each into place) before it is killed."""
    ingest(_config(tree, tmp_path / "undisturbed", duplicates="remove"))
    config = _config(tree, tmp_path / "out", duplicates="remove", workers=workers)
    replace, left = os.replace, 0

    def killed(old: str | Path, new: str | Path) -> None:
        nonlocal left
        if left == 0:
            raise _Killed
        left -= 1
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr("medunifier.data.ingest.command._remove", lambda *_: (_ for _ in ()).throw(_Killed()))
        with pytest.raises(_Killed):
            ingest(config)
    kills = 0
    for number in range(60):
        left = 1 + number % 3
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", killed)
            try:
                ingest(config)
                break
            except _Killed:
                kills += 1
    assert kills >= 3
    assert _contents(tmp_path / "out") == _contents(tmp_path / "undisturbed")
