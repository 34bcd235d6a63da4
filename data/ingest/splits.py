"""Splits by patient, where a source has no official ones."""

from collections.abc import Sequence
from dataclasses import replace

from medunifier.data.ingest.pseudonyms import uniform
from medunifier.data.records import SPLITS, TRAIN_AND_VALIDATE, StudyRecord
from medunifier.shared.errors import UserError


def assign_splits(
    records: Sequence[StudyRecord], key: bytes, validate_fraction: float, test_fraction: float
) -> list[StudyRecord]:
    """Every record with a split: the official one, else one drawn by patient.

    A patient's place depends on the key and the patient alone, so a grown archive keeps its splits. But no
    split of three patients or more stays empty: the lowest and the highest patient fill validate and test.
    Of an official "train+validate" the validation patients are drawn alike, and its test is left alone.

    Raises:
        UserError: if an official split puts one patient on two sides.
    """
    official = official_splits(records)
    place = {record.patient_id: uniform(key, record.patient_id) for record in records}
    ranked = sorted(place, key=place.__getitem__)
    drawn = {patient: _split(place[patient], validate_fraction, test_fraction) for patient in ranked}
    if len(ranked) >= len(SPLITS):
        if validate_fraction > 0:
            drawn[ranked[0]] = "validate"
        if test_fraction > 0:
            drawn[ranked[-1]] = "test"
        if "train" not in drawn.values():
            drawn[ranked[len(ranked) // 2]] = "train"
    divided = [patient for patient in ranked if official.get(patient) == TRAIN_AND_VALIDATE]
    for patient in divided:
        official[patient] = "validate" if place[patient] < validate_fraction else "train"
    if len(divided) >= 2 and validate_fraction > 0:
        official[divided[0]], official[divided[-1]] = "validate", "train"
    return [replace(r, split=official.get(r.patient_id) or drawn[r.patient_id]) for r in records]


def official_splits(records: Sequence[StudyRecord]) -> dict[str, str]:
    """Patient -> official split, for the patients that have one.

    Raises:
        UserError: if a split is unknown, or puts one patient on two sides. It counts studies in the source's order
            and names none, since what a command prints may be kept where no identifier belongs.
    """
    official: dict[str, str] = {}
    first: dict[str, int] = {}
    for number, record in enumerate(records, 1):
        if record.split is None:
            continue
        if record.split not in (*SPLITS, TRAIN_AND_VALIDATE):
            raise UserError(f"study {number} of {len(records)}: its split is none of {', '.join(SPLITS)}")
        before = official.setdefault(record.patient_id, record.split)
        if before != record.split:
            raise UserError(
                f"the source's own splits leak: studies {first[record.patient_id]} and {number} of {len(records)}, "
                f"counted in the source's order, are of one patient, in {before} and in {record.split}; "
                "--options.official_splits false splits all patients anew, whole"
            )
        first.setdefault(record.patient_id, number)
    return official


def _split(place: float, validate_fraction: float, test_fraction: float) -> str:
    if place < validate_fraction:
        return "validate"
    return "test" if place >= 1 - test_fraction else "train"
