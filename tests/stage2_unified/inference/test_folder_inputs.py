"""A folder of radiographs as input: the same files as the dicom-folder source finds, and a count of the others."""

import gzip

import pytest

from medunifier.data.sources import SourceOptions, read_source
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.inference.inputs import open_inputs
from tests.data.files.test_walk import identified, without_pixels, write


class Size:
    """What `open_inputs` reads of a tokenizer for files."""

    image_size = 32


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "archive"
    dicom = identified()
    write(root, dict.fromkeys(["IM1", "a/1.2.840.7", "a/x.IMA", "b.dcm"], dicom) | {
        "c.dcm.gz": gzip.compress(dicom), "README": b"text", "DICOMDIR": without_pixels("1.2.840.10008.1.3.10"),
    })  # fmt: skip
    write(tmp_path / "disk", {"d.dcm": dicom})
    (root / "disk").symlink_to(tmp_path / "disk")
    (root / "loop").symlink_to(root)
    return root


def test_inputs_and_source_find_the_same_files(archive, capsys):
    for outside, number in ((False, 5), (True, 6)):
        keys = open_inputs(str(archive), "", Size, outside_root=outside).keys
        records = read_source("dicom-folder", archive, SourceOptions(outside_root=outside)).records
        assert keys == sorted(str(view.path) for record in records for view in record.views) and len(keys) == number
        printed = capsys.readouterr().err
        assert "DICOMDIR" in printed and "not an image file (1)" in printed and str(archive / "README") in printed
        assert ("--outside_root" in printed) is not outside and "--options" not in printed


def test_a_folder_reads_every_file(archive):
    source = open_inputs(str(archive), "", Size)
    assert all(source.read(number).pixels.shape == (32, 32) for number in range(5))


def test_a_folder_without_images_is_an_error(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UserError, match="no radiograph"):
        open_inputs(str(tmp_path), "", Size)
    assert "(1)" in capsys.readouterr().err
