"""Phantoms for the page, generated at startup: examples to try, and an index for similarity search."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medunifier.data.images.resize import fit_square
from medunifier.data.phantom import Phantom, PhantomStudy
from medunifier.data.reports.observations import FINDINGS
from medunifier.data.reports.sections import one_line, split_sections
from medunifier.shared.files.grey_levels import to_uint8
from medunifier.stage2_unified.inference.embedding_index import StudyIndex
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

_EXAMPLES_SEED, _INDEX_SEED = 2026, 2027  # not used in training
_FINDINGS = (
    "cardiomegaly",
    "effusion",
    "pneumothorax",
    "opacity",
    "nodule",
)  # those in the training data of the included model
_MIN_SIZE = 64  # pixels; below it, findings are hardly visible


@dataclass(frozen=True)
class Example:
    """An example phantom: its file, view position and ground-truth report."""

    path: Path
    view: str
    truth: str


def write_examples(folder: Path, size: int, count: int = 8) -> list[Example]:
    """Write ``count`` phantoms with distinct findings as PNG files of the model's resolution, at least 64 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    phantom = Phantom(max(size, _MIN_SIZE), _EXAMPLES_SEED, _FINDINGS)
    chosen: dict[frozenset[str], Example] = {}
    number = 0
    while len(chosen) < count:
        study = phantom.study(number)
        stated = frozenset(name for name, value in study.labels.items() if value == 1)
        number += 1
        if stated in chosen:
            continue
        path = folder / f"phantom-{len(chosen) + 1}.png"
        Image.fromarray(to_uint8(study.images[0])).save(path)
        report = _report_of(study)
        truth = "\n\n".join(f"{name.upper()}: {text}" for name, text in report.items() if text)
        chosen[stated] = Example(path, study.views[0], truth)
    return list(chosen.values())


def phantom_index(pipeline: MedUnifierPipeline, count: int) -> tuple[StudyIndex, Mapping[str, np.ndarray]]:
    """Return an in-memory index of ``count`` phantoms, and their (S, S) uint8 images by study id.

    Its ``about["findings"]`` are the findings of at least one phantom in fifty.
    """
    size = pipeline.tokenizer.image_size
    phantom = Phantom(max(size, _MIN_SIZE), _INDEX_SEED, _FINDINGS)
    studies = [phantom.study(number) for number in range(count)]
    images = np.stack([fit_square(study.images[0], size) for study in studies])
    views = [study.views[0] for study in studies]
    embeddings = pipeline.embed_images(pipeline.encode(images), views)
    rows = [
        {"study_id": study.study_id, "view": view, **_report_of(study)}
        for study, view in zip(studies, views, strict=True)
    ]
    stated = Counter(name for study in studies for name, value in study.labels.items() if value == 1)
    frequent = [name for name in FINDINGS if stated[name] >= count / 50]
    about = {"source": f"phantoms of seed {_INDEX_SEED}", "studies": count, "findings": frequent}
    thumbnails = {study.study_id: to_uint8(image) for study, image in zip(studies, images, strict=True)}
    return StudyIndex(embeddings, rows, about), thumbnails


def _report_of(study: PhantomStudy) -> dict[str, str]:
    sections = split_sections(study.report)
    return {name: one_line(sections[name]) for name in ("findings", "impression") if sections.get(name)}
