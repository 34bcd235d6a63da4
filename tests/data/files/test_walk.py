"""The walk over a folder of images: kinds by content, links, loops, and counts of what is left out."""

import gzip
import os
import tracemalloc
import zlib
from collections import Counter

import pytest
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from medunifier.data.files.names import report_names, without_ending
from medunifier.data.files.walk import find_images, list_files
from medunifier.data.remote_paths import open_root
from tests.data.dicom_samples import SAMPLES, file_bytes, sample, sample_dicom


def identified(patient="p1", study="1.2.3", syntax=None, **changes):
    """The bytes of a small DICOM file of a patient."""
    dataset = sample_dicom(**({"syntax": syntax} if syntax else {}))
    dataset.PatientID, dataset.StudyInstanceUID, dataset.StudyDate = patient, study, "20310405"
    for name, value in changes.items():
        setattr(dataset, name, value)
    return file_bytes(dataset)


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def walked(root, **options):
    left_out = []
    found = {str(image.path.relative_to(root)): image for image in find_images(open_root(root), left_out, **options)}
    return found, Counter(problem.reason for problem in left_out)


def without_pixels(class_uid):
    dataset = sample_dicom()
    dataset.SOPClassUID = UID(class_uid)
    dataset.file_meta.MediaStorageSOPClassUID = UID(class_uid)
    del dataset.PixelData, dataset.Rows, dataset.Columns
    dataset.PatientID = "other"
    return file_bytes(dataset)


def test_images_are_found_by_content_whatever_their_names(tmp_path):
    dicom = identified()
    names = ["IM000001", "1.2.840.113619.2", "x.IMA", "y.ima", "z.DCM", "no.suffix.known", "d/e.v2/f", "report.txt"]
    write(
        tmp_path, {name: dicom for name in names} | {"packed": gzip.compress(dicom), "a.dcm.gz": gzip.compress(dicom)}
    )
    write(tmp_path, {f"samples/{name}": sample(name) for name in SAMPLES})
    found, left_out = walked(tmp_path)
    assert not left_out and {*names, "packed", "a.dcm.gz"} <= found.keys()
    assert len(found) == len(names) + 2 + len(SAMPLES)
    assert {image.kind for image in found.values()} == {"dicom"}


def test_other_files_are_left_out_and_counted_by_reason(tmp_path):
    write(tmp_path, {
        "a.dcm": identified(), "README": b"Export of 3 patients", "b/notes.txt": b"FINDINGS: clear", "empty": b"",
        "viewer.exe": b"MZ\x90\0\x03\0\0\0",
        ".DS_Store": b"\0\0\0\1Bud1", "._a.dcm": b"\0\5\x16\7", ".git/x.dcm": b"x",
        "DICOMDIR": without_pixels("1.2.840.10008.1.3.10"), "sr": without_pixels("1.2.840.10008.5.1.4.1.1.88.11"),
        "pr.dcm": without_pixels("1.2.840.10008.5.1.4.1.1.11.1"), "packed.log": gzip.compress(b"text"),
    })  # fmt: skip
    found, left_out = walked(tmp_path)
    assert list(found) == ["a.dcm"]
    counts = {word: sum(n for reason, n in left_out.items() if word in reason) for word in
              ("not an image file", "DICOMDIR", "without an image", "hidden")}  # fmt: skip
    assert counts == {"not an image file": 5, "DICOMDIR": 1, "without an image": 2, "hidden": 3}


def test_named_like_an_image_but_damaged_is_damaged(tmp_path):
    write(
        tmp_path,
        {"a.dcm": b"no dicom", "b.jpg": b"", "c.dcm.gz": gzip.compress(b"text"), "d": sample("explicit")[:140]},
    )
    found, left_out = walked(tmp_path)
    assert {name: image.kind for name, image in found.items()} == dict.fromkeys(
        ["a.dcm", "b.jpg", "c.dcm.gz", "d"], "damaged"
    )
    assert not left_out


def test_links_are_followed_once_without_loops(tmp_path):
    root = tmp_path / "root"
    write(root, {"real/a.dcm": identified(), ".store/b.dcm": identified(), "real/deep/c.dcm": identified()})
    links = {
        "again": "real", "real/up": "..", "real/self": ".", "b.dcm": ".store/b.dcm", "b2.dcm": "b.dcm",
        "a_link.dcm": "real/a.dcm", "gone.dcm": "nowhere", "loop": "loop", "store": ".store",
    }  # fmt: skip
    for link, target in links.items():
        (root / link).symlink_to(target)
    found, left_out = walked(root)
    assert list(found) == ["b.dcm", "real/a.dcm", "real/deep/c.dcm"]
    by_word = {w: sum(n for reason, n in left_out.items() if w in reason) for w in ("already", "broken", "hidden")}
    assert by_word == {"already": 6, "broken": 2, "hidden": 1}
    listed = [str(path.relative_to(root)) for path in list_files(root, [], aliases=True)]
    assert {"b.dcm", "b2.dcm", "a_link.dcm", "real/a.dcm", "store/b.dcm"} <= set(listed)


def test_links_out_of_the_root_need_the_option(tmp_path):
    root = tmp_path / "root"
    write(tmp_path, {"root/a.dcm": identified(), "disk/b.dcm": identified(), "disk/c.dcm": identified()})
    (root / "disk").symlink_to(tmp_path / "disk")
    (root / "b.dcm").symlink_to(tmp_path / "disk" / "b.dcm")
    (tmp_path / "disk" / "back").symlink_to(tmp_path)
    found, left_out = walked(root)
    assert list(found) == ["a.dcm"] and list(left_out.values()) == [2] and "outside_root" in next(iter(left_out))
    found, left_out = walked(root, outside_root=True)
    assert {name.rpartition("/")[2] for name in found} == {"a.dcm", "b.dcm", "c.dcm"} and len(found) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_what_may_not_be_read_is_left_out(tmp_path):
    write(tmp_path, {"a.dcm": identified(), "locked/b.dcm": identified(), "c.dcm": identified()})
    (tmp_path / "c.dcm").chmod(0), (tmp_path / "locked").chmod(0)
    found, left_out = walked(tmp_path)
    (tmp_path / "locked").chmod(0o700)
    assert list(found) == ["a.dcm"] and sum(left_out.values()) == 2


def test_a_fifo_is_left_out(tmp_path):
    os.mkfifo(tmp_path / "fifo.dcm")
    found, left_out = walked(tmp_path)
    assert not found and "regular" in next(iter(left_out))


def test_the_identity_is_read_in_every_form(tmp_path):
    plain, deflated = identified(), identified(syntax=DeflatedExplicitVRLittleEndian)
    write(tmp_path, {
        "plain": plain, "gzip": gzip.compress(plain), "deflated": deflated, "both": gzip.compress(deflated),
        "implicit": identified(syntax=ImplicitVRLittleEndian), "cut": deflated[: len(deflated) * 2 // 3],
        "cut.gz": gzip.compress(plain)[:600], "spaced": identified(" p1 ", "1.2.3"),
    })  # fmt: skip
    found, left_out = walked(tmp_path)
    assert not left_out and len(found) == 8
    assert {image.identity.patient for image in found.values()} == {"p1"}
    assert {image.identity.study for image in found.values()} == {"1.2.3"}
    assert {image.identity.taken for image in found.values()} == {"20310405T"}


def test_a_decompression_bomb_in_a_header_is_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr("medunifier.data.files.header._FIRST_BYTES", 2**14)
    monkeypatch.setattr("medunifier.data.files.header._MORE_BYTES", 2**16)  # read as 8,000 empty elements
    zeros = bytes(2**23)
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    meta = sample("deflated")
    meta = meta[: 144 + int.from_bytes(meta[140:144], "little")]
    bombs = {
        "bomb.dcm": meta + deflate.compress(zeros) + deflate.flush(),
        "bomb.gz": gzip.compress(sample("explicit")[:200] + zeros),
    }
    write(tmp_path, bombs)
    del zeros, bombs
    tracemalloc.start()
    found, _ = walked(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 2 and peak < 2**21


def test_only_known_endings_are_removed_from_a_name():
    stems = {
        "film.dcm.gz": "film", "FILM.IMA": "FILM", "1.2.840.7": "1.2.840.7", "a.b.jpeg": "a.b", "v1.2": "v1.2",
        ".dcm": ".dcm",
    }  # fmt: skip
    assert {name: without_ending(name) for name in stems} == stems
    assert "1.2.840.txt" not in report_names("1.2.840.7") and "1.2.840.7.txt" in report_names("1.2.840.7")
