"""CheXpert Plus: PNG files and the reports of CheXpert, split into sections.

Layout (Stanford AIMI): ``df_chexpert_plus_240401.csv`` with path_to_image (``train/patient42142/study5/
view1_frontal.jpg``), frontal_lateral, ap_pa, deid_patient_id, section_findings, section_impression, split, and
optionally patient_report_date_order, the chronological index of the study; images under the root, ``PNG/`` or
``PNG/PNG/``, as .png or .jpg. Labels, if downloaded, in ``chexbert_labels/report_fixed.json``: one JSON
object per line, null = not mentioned.
"""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.files.names import without_ending
from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.remote_paths import is_file
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.chexpert import study_folder, view_position
from medunifier.data.sources.tables import (
    Row,
    grouped,
    label_cells,
    read_table,
    read_text,
    required_table,
    split_name,
)
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import parse_json

_COLUMNS = (
    "path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "section_findings", "section_impression", "split",
)  # fmt: skip


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield the studies in table order.

    Raises:
        UserError: if the table is missing or lacks a column, or the labels cannot be read.
    """
    table = required_table(root, "df_chexpert_plus_*", "CheXpert Plus")
    rows = read_table(
        table, _COLUMNS, problems, needed=["path_to_image", "deid_patient_id"], optional=["patient_report_date_order"]
    )
    labels = _labels(root / "chexbert_labels" / "report_fixed.json", problems)
    images = next((base for base in (root / "PNG" / "PNG", root / "PNG") if (base / "train").is_dir()), root)
    for folder, group in grouped(rows, lambda row: study_folder(row["path_to_image"])).items():
        first = group[0]
        yield StudyRecord(
            study_id=str(folder),
            patient_id=first["deid_patient_id"],
            views=tuple(
                View(
                    _existing(images / folder / Path(row["path_to_image"]).name),
                    view_position(row["frontal_lateral"], row["ap_pa"]),
                )
                for row in group
            ),
            findings=first["section_findings"],
            impression=first["section_impression"],
            labels=labels.get(first["path_to_image"]),
            label_names=tuple(labels.get(first["path_to_image"], ())),
            split=split_name(first["split"], first.where),
            taken=_place(first["patient_report_date_order"]),
        )


def _place(order: str) -> str:
    """Zero-pad the index among a patient's reports, "3" or "3.0", so that it sorts as text."""
    number = order.removesuffix(".0")
    return number.zfill(6) if number.isdigit() else ""


def _existing(path: Path) -> Path:
    """Return the existing file: the table lists .jpg where the files may be .png."""
    converted = path.with_name(f"{without_ending(path.name)}.png")
    return converted if is_file(converted) else path


def _labels(path: Path, problems: list[Problem]) -> dict[str, dict[str, int]]:
    if not path.is_file():
        problems.append(Problem("no chexbert_labels/report_fixed.json: labels are read from the reports", str(path)))
        return {}
    labels = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = parse_json(line, where, "an entry of labels")
            cells = {name: "" if entry.get(name) is None else str(entry[name]) for name in OBSERVATIONS}
            row = Row(cells)
            row.where = where
            labels[entry["path_to_image"]] = label_cells(row, problems)
        except (KeyError, TypeError):  # TypeError: a path that is a list
            raise UserError(f"{where}, is not a JSON object with path_to_image: download the file again") from None
    return labels
