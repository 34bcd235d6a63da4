"""R2Gen's version of Open-I (and of MIMIC-CXR): ``annotation.json`` and a folder ``images``.

{"train" | "val" | "test": [{"id", "report", "image_path": [...], "split"}]}. In a circulating copy the test key is
four spaces, so the split is taken from the entries. The MIMIC version also has subject_id and study_id. The report
is the preprocessed (lower-case) findings section; Open-I's ids (CXR2384_IM-0942) begin with the patient.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import read_text, split_name
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import parse_json


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield the studies in file order.

    Raises:
        UserError: if ``annotation.json`` is missing or has another structure.
    """
    path = root / "annotation.json"
    if not path.is_file():
        raise UserError(f"{root} has no annotation.json: pass the folder that contains it and images/ as --root")
    try:
        annotation = parse_json(read_text(path), path, "R2Gen's annotation")
        entries = [
            (f"{path}, {key.strip() or 'test'} entry {number}", entry)
            for key, split in annotation.items()
            for number, entry in enumerate(split)
        ]
    except TypeError:
        raise UserError(f'{path} is not {{"train": [{{"id", "report", "image_path", "split"}}, …], …}}') from None
    for where, entry in entries:
        missing = [name for name in ("id", "image_path", "split") if not _value(entry, name)]
        if missing or not isinstance(entry["image_path"], list):
            problems.append(Problem(f"entry without {missing[0] if missing else 'a list of images'}", where))
            continue
        study = str(entry["id"])
        yield StudyRecord(
            study_id=study,
            patient_id=str(_value(entry, "subject_id") or study.split("_")[0]),
            views=tuple(View(root / "images" / str(name)) for name in entry["image_path"]),
            findings=str(_value(entry, "report") or ""),
            split=split_name(str(entry["split"]), where),
        )


def _value(entry: Any, name: str) -> Any:
    """Return the entry's value; None if it is missing or NaN, which Python's json module writes."""
    value = entry.get(name) if isinstance(entry, dict) else None
    return None if value != value else value
