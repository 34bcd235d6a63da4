"""Options of ingest for the crop and the grey levels of an image, recorded in the manifest."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from medunifier.data.images.isolated import IsolatedReader
from medunifier.data.images.masks import read_masks
from medunifier.data.images.radiograph import read_image
from medunifier.data.images.resize import fit_square
from medunifier.data.ingest.check import try_images
from medunifier.shared.errors import UserError
from tests.data.images.test_dicom import RAMP, dicom_dataset, saved
from tests.data.ingested import ingest_csv


def test_crop_is_the_centre_of_the_image_at_a_larger_scale() -> None:
    image = np.zeros((60, 100), np.float32)
    image[:, 20:80] = np.linspace(0, 1, 60, dtype=np.float32)[:, None]
    cut = fit_square(image, 60, "crop")
    assert np.allclose(cut, image[:, 20:80], atol=1e-6)
    assert np.allclose(fit_square(image.T, 60, "crop"), cut.T, atol=1e-6)
    half = fit_square(image, 30, "crop")
    assert half.shape == (30, 30) and half[:, 0].max() > 0.9  # no black margin
    assert fit_square(image, 30)[:6].max() == 0  # padding adds two


def test_a_crop_with_an_odd_number_of_pixels_to_remove_is_centred() -> None:
    symmetric = np.abs(np.linspace(-1, 1, 91, dtype=np.float32))[None, :].repeat(40, 0)
    cut = fit_square(symmetric, 20, "crop")
    assert np.allclose(cut, cut[:, ::-1], atol=1e-5)


def test_window_full_ignores_the_window_and_lut_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], (np.arange(4096, dtype=np.uint16) // 2).tolist()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    for changes in ({"WindowCenter": 2048, "WindowWidth": 101}, {"VOILUTSequence": [table]}):
        saved(dicom_dataset(**changes), path)
        assert not np.allclose(read_image(path).pixels, RAMP / 4095, atol=1e-2)
        assert np.allclose(read_image(path, window="full").pixels, RAMP / 4095, atol=1e-6)
    inverse = dicom_dataset(PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=101)
    assert np.allclose(read_image(saved(inverse, path), window="full").pixels, 1 - RAMP / 4095, atol=1e-6)


HEADERS = {
    "chest": {},
    "unstated": {"Modality": "", "BodyPartExamined": ""},
    "thorax": {"Modality": "DX", "BodyPartExamined": "THORAX ERWACHSEN"},
    "hand": {"BodyPartExamined": "EXTREMITY"},
    "slice": {"Modality": "CT"},
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, changes in HEADERS.items():
        saved(dicom_dataset(WindowCenter=2048, WindowWidth=1001, **changes), tree / f"{name}.dcm")
    Image.fromarray((RAMP >> 4).astype(np.uint8)).save(tree / "picture.png")
    names = [f"{name}.dcm" for name in HEADERS] + ["picture.png"]
    (tree / "manifest.csv").write_text("\n".join(["image", *names]) + "\n")
    return tree


def test_chest_only_refuses_other_modalities_and_body_parts(tree: Path, tmp_path: Path) -> None:
    manifest, _ = ingest_csv(tree, tmp_path / "all", 16)
    assert manifest["counts"]["kept_studies"] == 6 and manifest["transform"]["chest_only"] is False
    manifest, _ = ingest_csv(tree, tmp_path / "chest", 16, chest_only=True)
    assert manifest["counts"]["kept_studies"] == 4 and manifest["transform"]["chest_only"] is True
    reasons = sorted(manifest["counts"]["reject_reasons"].items())
    assert [count for _, count in reasons] == [1, 1]
    assert "modality" in reasons[0][0] and "body part" in reasons[1][0]
    paths = sorted(tree.glob("*.dcm"))
    refused = try_images(paths, burned_in=False, chest_only=True)[1]
    assert [path.stem for path, _ in refused] == ["hand", "slice"]


def test_fit_and_window_reach_the_shards_and_the_manifest(tree: Path, tmp_path: Path) -> None:
    plain, padded = ingest_csv(tree, tmp_path / "plain", 16)
    assert plain["transform"]["resize"].endswith("padded with black") and plain["transform"]["window"] == "header"
    other, cropped = ingest_csv(tree, tmp_path / "cut", 16, fit="crop", window="full")
    assert other["transform"]["resize"].endswith("cropped to the central square")
    assert other["transform"]["window"] == "full"
    keys = {padded[number].key: number for number in range(len(padded))}
    for number in range(len(cropped)):
        padded_image, cropped_image = padded[keys[cropped[number].key]].images[0], cropped[number].images[0]
        assert (
            padded_image[0].max() == 0 and cropped_image[0].max() > 0
        )  # 32 x 40 pixels: padded above and below, or cropped
    with pytest.raises(UserError, match="other settings"):
        ingest_csv(tree, tmp_path / "plain", 16, fit="crop")


def test_isolated_decoding_gives_the_same_pixels(tree: Path) -> None:
    with IsolatedReader() as reader:
        for options in (("pad", "full"), ("crop", "header")):
            direct = read_image(tree / "chest.dcm", 16, *options)
            isolated = reader.read(tree / "chest.dcm", 16, *options)
            assert np.array_equal(direct.pixels, isolated.pixels)
    assert not np.array_equal(direct.pixels, read_image(tree / "chest.dcm", 16).pixels)


def test_a_mask_is_cropped_like_its_image(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 30:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = read_masks([("Fracture", tmp_path / "mask.png")], (40, 60), 20, "crop")["Fracture"]
    assert np.array_equal(found, np.arange(20)[None, :].repeat(20, 0) >= 10)
