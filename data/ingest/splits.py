"""Assign patients to splits where a source has no official ones."""

from collections.abc import Sequence
from dataclasses import replace

from medunifier.data.ingest.pseudonyms import uniform
from medunifier.data.records import SPLITS, TRAIN_AND_VALIDATE, StudyRecord
from medunifier.shared.errors import UserError


def assign_splits(
    records: Sequence[StudyRecord], key: bytes, validate_fraction: float, test_fraction: float
) -> list[StudyRecord]:
    """Return every record with a split: the official one, otherwise one assigned by patient.

    A patient's split depends only on the key and the patient, so a growing archive keeps its splits. With three
    patients or more no split stays empty: the patients with the lowest and highest value fill validate and test.
    Validation patients of an official "train+validate" are assigned in the same way; its test split is unchanged.

    Raises:
        UserError: if the official splits place one patient in two splits.
    """
    official = official_splits(records)
    value = {record.patient_id: uniform(key, record.patient_id) for record in records}
    ranked = sorted(value, key=value.__getitem__)
    assigned = {patient: _split(value[patient], validate_fraction, test_fraction) for patient in ranked}
    if len(ranked) >= len(SPLITS):
        if validate_fraction > 0:
            assigned[ranked[0]] = "validate"
        if test_fraction > 0:
            assigned[ranked[-1]] = "test"
        if "train" not in assigned.values():
            assigned[ranked[len(ranked) // 2]] = "train"
    to_divide = [patient for patient in ranked if official.get(patient) == TRAIN_AND_VALIDATE]
    for patient in to_divide:
        official[patient] = "validate" if value[patient] < validate_fraction else "train"
    if len(to_divide) >= 2 and validate_fraction > 0:
        official[to_divide[0]], official[to_divide[-1]] = "validate", "train"
    return [replace(r, split=official.get(r.patient_id) or assigned[r.patient_id]) for r in records]


def official_splits(records: Sequence[StudyRecord]) -> dict[str, str]:
    """Return patient -> official split, for the patients that have one.

    Raises:
        UserError: if a split is unknown, or one patient is in two splits. The message gives positions of studies in
            the source's order instead of names, since a command's output may be logged where identifiers must not be.
    """
    official: dict[str, str] = {}
    first: dict[str, int] = {}
    for number, record in enumerate(records, 1):
        if record.split is None:
            continue
        if record.split not in (*SPLITS, TRAIN_AND_VALIDATE):
            raise UserError(f"study {number} of {len(records)}: its split is not one of {', '.join(SPLITS)}")
        previous = official.setdefault(record.patient_id, record.split)
        if previous != record.split:
            raise UserError(
                f"the official splits leak: studies {first[record.patient_id]} and {number} of {len(records)}, "
                f"in the source's order, belong to one patient, but are in {previous} and {record.split}; "
                "--options.official_splits false assigns new splits by patient"
            )
        first.setdefault(record.patient_id, number)
    return official


def _split(value: float, validate_fraction: float, test_fraction: float) -> str:
    if value < validate_fraction:
        return "validate"
    return "test" if value >= 1 - test_fraction else "train"
