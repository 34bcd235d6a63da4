"""Masks: SIIM-ACR run lengths, mask folders, and masks in ingest and duplicate removal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from medunifier.data.images.masks import decode_runs, mask_name, read_masks
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_image
from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.phantom import Phantom
from medunifier.data.phantom.command import main as phantom_main
from medunifier.data.phantom.rendering.frontal import finding_masks, render_frontal
from medunifier.data.phantom.state import Lesion
from medunifier.data.records import SPLITS
from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.errors import UsageError, UserError
from tests.data.images.test_dicom import dicom_dataset, saved
from tests.data.phantom.rendering.test_frontal import PLAIN
from tests.seeds import for_seeds


def encoded(mask: np.ndarray) -> str:
    """Encode in column-major order; each gap is counted from the end of the previous run."""
    runs: list[str] = []
    gap = length = 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row, column]:
                length += 1
            else:
                if length:
                    runs += [str(gap), str(length)]
                    gap = length = 0
                gap += 1
    return " ".join([*runs, str(gap), str(length)] if length else runs)


@for_seeds(200)
def test_run_lengths_round_trip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(2, 9, size=2)) < rng.uniform(0.1, 0.9)
    mask[0, 0] = True
    assert (decode_runs(encoded(mask), *mask.shape) == mask).all()


@pytest.mark.parametrize("text", ["3", "1 2 3", "-1", "0 -3", "x 2", "", "9 2"])
def test_invalid_run_lengths_are_refused(text: str) -> None:
    with pytest.raises(UnreadableImage, match="its mask"):
        decode_runs(text, 2, 5)


def test_masks_of_one_finding_are_merged_and_resized_like_the_image(tmp_path: Path) -> None:
    wide = np.zeros((20, 40), dtype=bool)
    wide[:, :20] = True
    Image.fromarray(wide.astype(np.uint8) * 255).save(tmp_path / "a.png")
    found = read_masks([("Edema", "0 4"), ("Edema", "20 4"), ("Fracture", tmp_path / "a.png")], (20, 40), 20)
    # 20 x 40 is fitted to the middle ten rows of 20 x 20; 4 pixels in each of two columns become two in one.
    assert found["Fracture"][5:15, :10].all() and found["Fracture"].sum() == 100
    assert np.argwhere(found["Edema"]).tolist() == [[5, 0], [6, 0]]
    with pytest.raises(UnreadableImage, match="20 x 40.*40 x 20"):
        read_masks([("Fracture", tmp_path / "a.png")], (40, 20), 20)
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="grey"):
        read_masks([("Fracture", tmp_path / "a.png")], (20, 40), 20)
    (tmp_path / "a.png").write_text("none")
    with pytest.raises(UnreadableImage, match="PNG"):
        read_masks([("Fracture", tmp_path / "a.png")], (20, 40), 20)


def test_masks_follow_orientation_and_pixel_aspect(tmp_path: Path) -> None:
    """Ingested masks, of files and of run lengths, lie on the bright rectangle of the image that they mark."""
    marked = np.zeros((60, 90), dtype=bool)
    marked[6:21, 9:27] = True
    Image.fromarray(marked).save(tmp_path / "mask.png")
    masks = [("Fracture", tmp_path / "mask.png"), ("Edema", encoded(marked))]
    files = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        files.append(tmp_path / f"{orientation}.png")
        Image.fromarray(marked.astype(np.uint8) * 255).save(files[-1], exif=exif)
    for spacing in ([0.1, 0.1], [0.2, 0.1], [0.1, 0.15]):
        pixels = (marked * 4095).astype("<u2")
        files.append(tmp_path / f"{spacing}.dcm")
        saved(dicom_dataset(Rows=60, Columns=90, PixelSpacing=spacing, PixelData=pixels.tobytes()), files[-1])
    places = set()
    for path in files:
        for fit in ("pad", "crop"):
            image = read_image(path, 45, fit)
            found = read_masks(masks, image.stored, 45, fit, image.geometry)
            for mask in found.values():
                assert mask.sum() > 20 and np.array_equal(mask, image.pixels >= 0.5), (path.name, fit)
            places.add(found["Edema"].tobytes())
    assert len(places) == 2 * (len(files) - 1)  # upright with square pixels occurs twice


def test_ingest_turns_masks_with_their_images(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    marked = np.zeros((32, 64), np.uint8)
    marked[:8, :16] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(marked).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(marked).save(tmp_path / "masks" / mask_name("a.png", "Fracture"))
    (tmp_path / "manifest.csv").write_text(
        "image,patient_id,study_id,view,findings,split\na.png,p,s,PA,Clear.,train\n"
    )
    ingest(IngestConfig("csv", str(tmp_path), str(tmp_path / "out"), size=64, workers=1, duplicates="ignore",
                        masks=str(tmp_path / "masks")))  # fmt: skip
    train = ShardDataset(tmp_path / "out", "train")
    image, mask = train[0].images[0], train.masks(0, 0)["Fracture"]
    # A quarter turn clockwise puts the upper left corner on the upper right, beside 16 columns of padding.
    assert mask[:16, 40:48].all() and mask.sum() == 128 and np.array_equal(mask, image > 127)


@pytest.mark.parametrize(
    ("finding", "change"),
    [
        ("Pleural Effusion", {"effusions": (Lesion("left", 1),)}),
        ("Pneumothorax", {"pneumothorax": Lesion("right", 1)}),
        ("Lung Opacity", {"opacity": Lesion("left", 1, "mid")}),
        ("Consolidation", {"consolidation": Lesion("right", 1, "lower")}),
        ("Lung Lesion", {"nodule": Lesion("left", 1, "upper")}),
        ("Atelectasis", {"atelectasis": ("right",)}),
    ],
)
def test_a_phantoms_mask_is_where_its_image_changes(finding: str, change: dict[str, object]) -> None:
    state = replace(PLAIN, **change)
    found = finding_masks(state, 64, np.random.default_rng(5))
    assert list(found) == [finding] and not finding_masks(PLAIN, 64, np.random.default_rng(5))
    mask = found[finding]
    changed = np.abs(
        render_frontal(state, 64, np.random.default_rng(5)) - render_frontal(PLAIN, 64, np.random.default_rng(5))
    )
    assert changed[mask].mean() > 4 * changed[~mask].mean()
    right, left = mask[:, :32].sum(), mask[:, 32:].sum()  # the patient's right is on the left of the image
    assert (left > 4 * right) if "left" in str(change) else (right > 4 * left)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masked") / "archive"
    phantom_main(["--out", str(root), "--studies", "40", "--size", "64", "--seed", "2", "--masks", "true"])
    return root


def shards(archive: Path, out: Path, **changes: object) -> Path:
    options = {"size": 32, "workers": 1, "duplicates": "ignore", "masks": str(archive / "masks")} | changes
    ingest(IngestConfig(source="phantom", root=str(archive), out=str(out), **options))  # type: ignore[arg-type]
    return out


def samples(out: Path) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    datasets = [ShardDataset(out, split) for split in SPLITS]
    return [(data[i].images[0], data.masks(i, 0)) for data in datasets for i in range(len(data))]


def test_masks_are_stored_with_their_images(archive: Path, tmp_path: Path) -> None:
    phantom = Phantom(64, 2)
    expected = {}
    for index in range(40):
        small = phantom.study(index).images[0].reshape(32, 2, 32, 2).mean(axis=(1, 3))
        expected[index] = small, phantom.masks(index)
    found = samples(shards(archive, tmp_path / "out"))
    assert len(found) == 40 and sum(bool(masks) for _, masks in found) > 15
    for image, masks in found:
        index = min(expected, key=lambda i: np.abs(expected[i][0] * 255 - image).mean())
        truth = expected.pop(index)[1]
        assert set(masks) <= set(truth)  # a mask of a few pixels may vanish on resizing
        for finding, mask in masks.items():
            full = truth[finding].reshape(32, 2, 32, 2).mean(axis=(1, 3))
            assert (~mask & (full == 1)).sum() + (mask & (full == 0)).sum() <= 3  # bicubic at the edges
    with pytest.raises(UserError, match="other settings"):
        shards(archive, tmp_path / "out", masks="")


def test_masks_do_not_change_the_images(archive: Path, tmp_path: Path) -> None:
    bare = shards(archive, tmp_path / "bare", masks="")
    assert not any(masks for _, masks in samples(bare))
    assert [image.tobytes() for image, _ in samples(bare)] == [
        image.tobytes() for image, _ in samples(shards(archive, tmp_path / "masked"))
    ]


def test_removing_an_image_removes_its_masks(tmp_path: Path) -> None:
    """A study of two images, the first of which is also in test: image 1 becomes image 0, with its mask."""
    phantom = Phantom(64, 0)
    images = [phantom.study(20 * i).images[0] for i in range(3)]
    (tmp_path / "masks").mkdir()
    rows = ["image,patient_id,study_id,view,findings,split"]
    for name, index, split in (("a", 0, "train"), ("b", 1, "train"), ("c", 0, "test"), ("d", 2, "validate")):
        Image.fromarray(np.asarray(images[index] * 255 + 0.5, np.uint8)).save(tmp_path / f"{name}.png")
        mask = np.zeros((64, 64), np.uint8)
        mask[:, : 16 * (1 + index)] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / mask_name(f"{name}.png", "Pleural Other"))
        study = "train" if split == "train" else name
        rows.append(f"{name}.png,{study},{study},PA,Clear.,{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    ingest(IngestConfig("csv", str(tmp_path), str(tmp_path / "out"), size=64, workers=1, duplicates="remove",
                        masks=str(tmp_path / "masks")))  # fmt: skip
    train = ShardDataset(tmp_path / "out", "train")
    assert len(train) == 1 and len(train[0].images) == 1
    assert train.masks(0, 0)["Pleural Other"].sum() == 64 * 32 and not train.masks(0, 1)


def test_unmatched_folders_and_conflicting_options_are_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"[0-9a-f-]+\.pleural-effusion\.png"):
        shards(archive, tmp_path / "out", masks=str(tmp_path))
    with pytest.raises(UsageError, match="choose one"):
        phantom_main(["--out", str(tmp_path / "x"), "--studies", "2", "--masks", "true", "--headers", "openi"])
