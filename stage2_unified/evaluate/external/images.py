"""``medunifier evaluate external-images``: compare generated radiographs of another system with held-out ones."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_radiograph
from medunifier.data.images.resize import fit_square
from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.images.diversity import WINDOW, scales_of, similarity_within
from medunifier.shared.metrics.images.feature_nets import load_feature_net
from medunifier.shared.progress import Progress
from medunifier.stage2_unified.evaluate.results.files import print_metrics, write_result
from medunifier.stage2_unified.evaluate.results.result import TaskResult, digest
from medunifier.stage2_unified.evaluate.scores.images import Images, score_images
from medunifier.stage2_unified.inference.inputs import image_paths

EXAMPLES = 12

DESCRIPTION = (
    "Evaluate generated radiographs of any system. --generated and --real are folders of PNG, JPEG or DICOM files, "
    "read recursively; the two may share no file. Images in one subfolder of --generated count as generated "
    "from one prompt and are compared with each other (MS-SSIM). --train DIR, the images that the system was trained "
    "on, adds the distance to the nearest of them. Every image is fitted into --image_size pixels, aspect ratio kept."
)


@dataclass(frozen=True)
class ExternalImagesConfig:
    """Evaluate generated radiographs of any system."""

    generated: str
    """Folder of generated radiographs; a subfolder holds the images of one prompt."""
    real: str
    """Folder of real radiographs that the system was not trained on."""
    out: str
    """Result file, NAME.json; the page NAME.html is written beside it."""
    train: str | None = None
    """Folder of real radiographs that the system was trained on."""
    image_size: int = 256
    """Side in pixels at which the images are compared."""
    feature_net: str = "random"
    """Feature network: random, inception_v3, densenet121 or transformers."""
    feature_weights: str | None = None
    """Weights of the feature network, a file or folder; nothing is downloaded."""
    seed: int = 0
    """Seed of the bootstrap."""
    bootstrap: int = 200
    """Bootstrap resamples for an interval; each image counts as a separate patient."""
    device: str | None = None
    """torch device of the network; default: an accelerator if there is one."""

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
        files: its image files, sorted by path.
        pixels: (N, S, S) floats in [0, 1].
        hashes: SHA-256 of each file.
        stored: number of images of each size before fitting.
    """

    root: Path
    files: list[Path]
    pixels: np.ndarray
    hashes: list[str]
    stored: dict[str, int]

    def names(self) -> list[str]:
        """Return the paths relative to the folder."""
        return [str(file.relative_to(self.root)) for file in self.files]


def run(config: ExternalImagesConfig, command: str) -> None:
    """Evaluate the images and write the result, which records ``command``.

    Raises:
        UserError: for invalid folders.
    """
    net = load_feature_net(config.feature_net, config.feature_weights, config.device)
    folders = {"generated": config.generated, "real": config.real}
    if config.train is not None:
        folders["train"] = config.train
    listed = {name: list_images(folder) for name, folder in folders.items()}
    check_disjoint(folders, listed)
    for name, files in listed.items():
        if len(files) < 2:
            raise UserError(f"{folders[name]} holds one image, {files[0].name}: expected at least two images")
    sides = {name: read_folder(folders[name], files, config.image_size) for name, files in listed.items()}
    notes = _copy_notes(sides)
    result = evaluate_images(sides["generated"], sides["real"], sides.get("train"), net)
    real = sides["real"]
    data: dict[str, Any] = {
        "path": config.real,
        "manifest_sha256": digest(sorted(real.hashes)),
        "kind": "folders",
        "source": "folders",
        "sections": "none",
        "split": "unspecified",
        "counts": {name: len(side.files) for name, side in sides.items()},
        "transform": {
            "size": config.image_size,
            "resize": "aspect kept, anti-aliased, padded with black",
            "values": "float32 in [0, 1], not rounded to 8 bits",
            "stored": {name: side.stored for name, side in sides.items()},
        },
        "evaluated": {"synthesis": {"studies": len(real.files), "patients": len(real.files), "ids": real.hashes}},
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
    print_metrics(content, config.out)


def evaluate_images(generated: Folder, real: Folder, train: Folder | None, net: Any) -> TaskResult:
    """Compare a folder of generated images with one of real images."""
    names = generated.names()
    scores = score_images(
        Images(generated.pixels, names, names),
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
            np.mean([similarity_within(generated.pixels[rows]) for rows in several.values()])
        )
        details["variety"] = {"prompts": len(several), "scales": scales_of(generated.pixels.shape[1]), "examples": []}
    pictures: dict[str, np.ndarray] = {}
    details["examples"] = []
    for i in range(min(EXAMPLES, len(names))):
        pictures[f"synthesis-generated-{i}"] = generated.pixels[i]
        details["examples"].append({"report": names[i], "generated": f"synthesis-generated-{i}"})
    details["nearest_pairs"] = []
    for i, j, distance in scores.copies:
        assert train is not None  # noqa: S101 - narrows a type
        pair = f"synthesis-generated-{i}", f"synthesis-train-{j}"
        pictures |= {pair[0]: generated.pixels[i], pair[1]: train.pixels[j]}
        details["nearest_pairs"].append({"generated": pair[0], "train": pair[1], "distance": distance})
    protocol = {
        "feature_net": details["feature_net"],
        "image_size": list(generated.pixels.shape[1:]),
        "images": details["images"],
    }
    return TaskResult(metrics, details, pictures, samples=scores.samples, protocol=protocol)


def list_images(folder: str) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted by path.

    Raises:
        UserError: if it is no folder or holds no images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder} is no folder: pass the folder that holds the images, not a pattern or a file")
    files = image_paths(root, outside_root=True)  # a link into the other folder is found by its target
    if not files:
        raise UserError(f"no images in {folder}: expected PNG, JPEG or DICOM files")
    return files


def check_disjoint(folders: dict[str, str], listed: dict[str, list[Path]]) -> None:
    """Check that no file belongs to two sets, whatever path or link leads to it.

    Raises:
        UserError: if two folders are the same, nested, or share a file.
    """
    names = list(folders)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            shared = {path.resolve() for path in listed[a]} & {path.resolve() for path in listed[b]}
            if shared:
                raise UserError(
                    f"--{a} {folders[a]} and --{b} {folders[b]} share {len(shared)} files, such as {min(shared)}: "
                    "pass folders with different images"
                )


def read_folder(folder: str, files: list[Path], size: int) -> Folder:
    """Read every image and fit it into a square.

    Raises:
        UserError: if an image cannot be read; skipping it would change the metrics.
    """
    pixels: list[np.ndarray] = []
    stored: dict[str, int] = {}
    with Progress(len(files), f"reading {Path(folder).name}", "image") as progress:
        for path in files:
            try:
                image = read_radiograph(path)
                pixels.append(fit_square(image, size))
            except UnreadableImage as error:
                raise UserError(f"{path}: {error}; repair or remove it, then evaluate again") from None
            shape = f"{image.shape[0]} x {image.shape[1]}"
            stored[shape] = stored.get(shape, 0) + 1
            progress.advance(1)
    return Folder(Path(folder), files, np.stack(pixels), [sha256_file(path) for path in files], stored)


def _copy_notes(sides: dict[str, Folder]) -> list[str]:
    """Return a note for every two sets with identical images: allowed, as for a self-test, but reported."""
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
