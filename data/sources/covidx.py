"""COVIDx CXR: PNG and JPEG files from several collections, one of three classes per image; no reports.

Layout (COVID-Net): ``train*.txt``, ``test*.txt``, in later versions ``val*.txt``, each line "patient-id filename
class source"; images in the folder of the split, ``train/``, ``test/``, ``val/``.
"""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import TRAIN_AND_VALIDATE, Problem, StudyRecord, View
from medunifier.data.reports.label_names import positive_labels
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import read_text
from medunifier.shared.errors import UserError
from medunifier.shared.files.text import text_lines


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield one study per image.

    Class "normal" is No Finding and "pneumonia" is Pneumonia; COVID-19 is not one of the 14 observations.

    Raises:
        UserError: if ``train*.txt`` or ``test*.txt`` is missing, or there are several.
    """
    lists = {folder: _list(root, folder) for folder in ("train", "val", "test")}
    for folder in ("train", "test"):
        if lists[folder] is None:
            raise UserError(f"{root} has no {folder}*.txt: pass the top folder of COVIDx as --root")
    splits = {"train": "train" if lists["val"] else TRAIN_AND_VALIDATE, "val": "validate", "test": "test"}
    for folder, path in lists.items():
        if path is None:
            continue
        for number, line in enumerate(text_lines(read_text(path)), start=1):
            words = line.split()
            if not words:
                continue
            if len(words) < 4:
                problems.append(
                    Problem("line without patient, file name, class and source", f"{path}, line {number}")
                )
                continue
            # Some file names have spaces.
            patient, name, found, source = words[0], " ".join(words[1:-2]), words[-2], words[-1]
            yield StudyRecord(
                study_id=f"{folder}/{name}",
                # Patient ids are unique only within a collection.
                patient_id=f"{source}/{patient}",
                views=(View(root / folder / name),),
                labels=positive_labels([found]),
                label_names=(found,),
                split=splits[folder],
            )


def _list(root: Path, folder: str) -> Path | None:
    found = sorted(root.glob(f"{folder}*.txt"))
    if len(found) > 1:
        raise UserError(f"{root} has {', '.join(path.name for path in found)}: keep only the one to use")
    return found[0] if found else None
