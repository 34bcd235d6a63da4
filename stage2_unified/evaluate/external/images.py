"""``medunifier evaluate external-images``: compare generated radiographs of another system with held-out ones."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunifier.data.images.pixels import UnreadableImage, fit_square
from medunifier.data.images.radiograph import read_radiograph
from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.images.diversity import WINDOW, scales_of, similarity_within
from medunifier.shared.metrics.images.feature_nets import load_feature_net
from medunifier.shared.progress import Progress
from medunifier.stage2_unified.evaluate.results.files import print_figures, write_result
from medunifier.stage2_unified.evaluate.results.result import TaskResult, digest
from medunifier.stage2_unified.evaluate.scores.images import Images, score_images

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".dcm.gz")
EXAMPLES = 12

DESCRIPTION = (
    "Evaluate generated radiographs of any system. --generated and --real are folders of PNG, JPEG or DICOM files, "
    "read with all subfolders; the two may share no file. Images in one subfolder of --generated count as generated "
    "from one prompt and are compared with each other (MS-SSIM). --train DIR, the images that the system was trained "
    "on, adds the distance to the nearest of them. Every image is fitted into --image_size pixels, aspect ratio kept."
)


@dataclass(frozen=True)
class ExternalImagesConfig:
    """Evaluate generated radiographs of any system."""

    generated: str
    """Folder of generated radiographs; a subfolder holds those of one prompt."""
    real: str
    """Folder of real ones, which the system was not trained on."""
    out: str
    """Result file, NAME.json; the page NAME.html lies beside it."""
    train: str | None = None
    """Folder of real radiographs that the system was trained on."""
    image_size: int = 256
    """Side in pixels at which both sides are compared."""
    feature_net: str = "random"
    """random, inception_v3, densenet121 or transformers."""
    feature_weights: str | None = None
    """Its file or folder; nothing is downloaded."""
    seed: int = 0
    """Of the bootstrap."""
    bootstrap: int = 200
    """Resamples for an interval; each image counts as a patient of its own."""
    device: str | None = None
    """Where the net runs; an accelerator if there is one."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        if self.bootstrap < 2 or self.image_size < WINDOW:
            raise ValueError(f"bootstrap must be at least 2, image_size at least {WINDOW}")


@dataclass(frozen=True)
class Folder:
    """Images of one folder.

    Attributes:
        root: the folder.
        files: its image files, in the order of their names.
        pixels: (N, S, S) floats in [0, 1].
        hashes: SHA-256 of each file.
        stored: how often each size was met, as stored.
    """

    root: Path
    files: list[Path]
    pixels: np.ndarray
    hashes: list[str]
    stored: dict[str, int]

    def names(self) -> list[str]:
        """Paths below the folder."""
        return [str(file.relative_to(self.root)) for file in self.files]


def run(config: ExternalImagesConfig, command: str) -> None:
    """Evaluate and write the result, in which ``command`` is recorded.

    Raises:
        UserError: for folders that do not fit.
    """
    net = load_feature_net(config.feature_net, config.feature_weights, config.device)
    places = {"generated": config.generated, "real": config.real}
    if config.train is not None:
        places["train"] = config.train
    listed = {name: list_images(place) for name, place in places.items()}
    check_apart(places, listed)
    for name, files in listed.items():
        if len(files) < 2:
            raise UserError(
                f"{places[name]} holds one image, {files[0].name}: sets are compared here, of two images at least"
            )
    sides = {name: read_folder(places[name], files, config.image_size) for name, files in listed.items()}
    notes = _shared_content(sides)
    result = evaluate_images(sides["generated"], sides["real"], sides.get("train"), net)
    real = sides["real"]
    data: dict[str, Any] = {
        "path": config.real,
        "manifest_sha256": digest(sorted(real.hashes)),
        "kind": "folders",
        "source": "folders",
        "sections": "none",
        "split": "as given",
        "counts": {name: len(side.files) for name, side in sides.items()},
        "transform": {
            "size": config.image_size,
            "resize": "aspect kept, anti-aliased, padded with black",
            "values": "float32 in [0, 1], not rounded to 8 bits",
            "stored": {name: side.stored for name, side in sides.items()},
        },
        "judged": {"synthesis": {"studies": len(real.files), "patients": len(real.files), "ids": real.hashes}},
    }
    content = write_result(
        config.out,
        task="synthesis",
        results={"synthesis": result},
        data=data,
        model={"generated": config.generated, "generated SHA-256": digest(sorted(sides["generated"].hashes))},
        command=command,
        seed=config.seed,
        bootstrap=config.bootstrap,
        notes=notes,
    )
    print_figures(content, config.out)


def evaluate_images(drawn: Folder, real: Folder, train: Folder | None, net: Any) -> TaskResult:
    """Score a folder of drawn images beside one of real ones."""
    names = drawn.names()
    scores = score_images(
        Images(drawn.pixels, names, names),
        Images(real.pixels, real.hashes, real.hashes),
        net,
        None if train is None else train.pixels,
    )
    metrics, details = dict(scores.metrics), dict(scores.details)
    prompts: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        prompts.setdefault(str(Path(name).parent), []).append(i)
    several = {prompt: rows for prompt, rows in prompts.items() if prompt != "." and len(rows) > 1}
    if several:
        metrics["synthesis.ms_ssim_within"] = float(
            np.mean([similarity_within(drawn.pixels[rows]) for rows in several.values()])
        )
        details["variety"] = {"prompts": len(several), "scales": scales_of(drawn.pixels.shape[1]), "examples": []}
    pictures: dict[str, np.ndarray] = {}
    details["examples"] = []
    for i in range(min(EXAMPLES, len(names))):
        pictures[f"synthesis-generated-{i}"] = drawn.pixels[i]
        details["examples"].append({"report": names[i], "generated": f"synthesis-generated-{i}"})
    details["nearest_pairs"] = []
    for i, j, distance in scores.copies:
        assert train is not None
        pair = f"synthesis-generated-{i}", f"synthesis-train-{j}"
        pictures |= {pair[0]: drawn.pixels[i], pair[1]: train.pixels[j]}
        details["nearest_pairs"].append({"generated": pair[0], "train": pair[1], "distance": distance})
    protocol = {
        "feature_net": details["feature_net"],
        "image_size": list(drawn.pixels.shape[1:]),
        "images": details["images"],
    }
    return TaskResult(metrics, details, pictures, samples=scores.samples, protocol=protocol)


def list_images(folder: str) -> list[Path]:
    """Image files of a folder and those below it, in the order of their paths.

    Raises:
        UserError: if it is no folder or holds none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder} is no folder: give the folder that holds the images, not a pattern or a file")
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name.lower().endswith(SUFFIXES))
    if not files:
        raise UserError(f"no images in {folder}: expected files that end in {', '.join(SUFFIXES)}")
    return files


def check_apart(places: dict[str, str], listed: dict[str, list[Path]]) -> None:
    """No file may stand on two sides, by whatever path or link: a distance of a set to itself is no figure.

    Raises:
        UserError: if two folders are one, lie within each other, or share a file.
    """
    names = list(places)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            shared = {path.resolve() for path in listed[a]} & {path.resolve() for path in listed[b]}
            if shared:
                raise UserError(
                    f"--{a} {places[a]} and --{b} {places[b]} share {len(shared)} files, such as {min(shared)}: "
                    "the two sides must be different images in different folders"
                )


def read_folder(folder: str, files: list[Path], size: int) -> Folder:
    """Read and fit every image.

    Raises:
        UserError: naming the first that cannot be read: a figure over the others would be another figure.
    """
    pixels: list[np.ndarray] = []
    stored: dict[str, int] = {}
    with Progress(len(files), f"reading {Path(folder).name}", "image") as progress:
        for path in files:
            try:
                own = read_radiograph(path)
                pixels.append(fit_square(own, size))
            except UnreadableImage as error:
                raise UserError(f"{path}: {error}; mend it or take it away, then judge again") from None
            shape = f"{own.shape[0]} x {own.shape[1]}"
            stored[shape] = stored.get(shape, 0) + 1
            progress.advance(1)
    return Folder(Path(folder), files, np.stack(pixels), [sha256_file(path) for path in files], stored)


def _shared_content(sides: dict[str, Folder]) -> list[str]:
    """Images that stand on two sides as copies: legal (a test of this command is one), but said aloud."""
    notes = []
    names = list(sides)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            pictures = [
                {hashlib.sha256(image.tobytes()).hexdigest() for image in sides[name].pixels} for name in (a, b)
            ]
            common = len(pictures[0] & pictures[1])
            if common:
                notes.append(f"{common} images of {a} are copies, pixel for pixel, of images of {b}.")
    return notes
