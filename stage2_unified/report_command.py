"""``medunifier report``: draft reports for radiographs, a JSON line each."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from data.labels import label_report
from data.radiograph import UnreadableImage, read_film
from shared.artifacts import atomic_file
from shared.config import parse_config
from shared.errors import UserError
from shared.progress import Progress
from stage2_unified.inference import MedUnifierPipeline

NOTICE = "Draft of research software, not a medical device; it may overlook findings and invent others."
_SUFFIXES = {".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".gz"}


@dataclass(frozen=True)
class ReportConfig:
    """Write draft reports for radiographs (DICOM, PNG, JPEG): one JSON line each."""

    model: str
    """Model folder (run_dir/model)."""
    input: str
    """A radiograph, or a folder that is searched for radiographs."""
    out: str = ""
    """File for the JSON lines; empty = standard output."""
    view: str = ""
    """View position (PA, AP, LATERAL) where the file does not name it."""
    batch_size: int = 16
    """Radiographs a pass."""
    beams: int = 1
    """Beams of the search; 1 = greedy."""


def main(argv: Sequence[str] | None = None) -> None:
    """Read radiographs, write a line each; what cannot be read gets a line with its ``error``.

    Raises:
        UserError: for no model, no input, or no readable radiograph at all.
    """
    config = parse_config(ReportConfig, argv, prog="medunifier report")
    paths = _radiographs(Path(config.input))
    pipeline = MedUnifierPipeline.from_pretrained(config.model)
    if config.out:
        with atomic_file(config.out) as partial, open(partial, "w", encoding="utf-8") as file:
            _write(pipeline, paths, config, file)
    else:
        _write(pipeline, paths, config, sys.stdout)


def _radiographs(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} not found: give a radiograph or a folder of radiographs")
    found = sorted(
        entry
        for entry in path.rglob("*")
        if entry.is_file() and not entry.name.startswith(".") and entry.suffix.lower() in _SUFFIXES
    )
    if not found:
        raise UserError(f"no radiograph under {path}: looked for {', '.join(sorted(_SUFFIXES))}")
    return found


def _write(pipeline: MedUnifierPipeline, paths: list[Path], config: ReportConfig, file: TextIO) -> None:
    readable = 0
    with Progress(len(paths), "reports", "images") as progress:
        for begin in range(0, len(paths), config.batch_size):
            some = paths[begin : begin + config.batch_size]
            for line in _lines(pipeline, some, config):
                readable += "error" not in line
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            progress.advance(len(some))
    if not readable:
        raise UserError(f"none of the {len(paths)} files could be read as a radiograph (first: {paths[0]})")


def _lines(pipeline: MedUnifierPipeline, paths: list[Path], config: ReportConfig) -> Iterator[dict[str, Any]]:
    films: dict[Path, np.ndarray] = {}
    views, errors = [], {}
    for path in paths:
        try:
            film = read_film(path, pipeline.tokenizer.image_size)
        except UnreadableImage as error:
            errors[path] = error.reason
            continue
        films[path] = film.pixels
        views.append(film.view or config.view)
    reports = iter(
        pipeline.write_reports(pipeline.encode(np.stack(list(films.values()))), views, num_beams=config.beams)
        if films
        else []
    )
    for path in paths:
        if path in errors:
            yield {"path": str(path), "error": errors[path]}
            continue
        report = next(reports)
        labels = label_report(" ".join(report.values()))
        yield {"path": str(path), **report, "labels": labels, "notice": NOTICE}
