"""Which study of a patient came before which: told in the shards by a number, so that no date need be in them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medunifier.data.records import StudyRecord


def number_visits(records: Sequence[StudyRecord]) -> list[StudyRecord]:
    """Every record with its ``visit``: the place of its ``taken`` among those of its patient, from 0.

    Studies of one moment share a number, since nobody can tell which came first; without a moment there is none.
    """
    moments: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.taken:
            moments[record.patient_id].add(record.taken)
    places = {patient: {taken: place for place, taken in enumerate(sorted(of))} for patient, of in moments.items()}
    return [replace(r, visit=places[r.patient_id][r.taken] if r.taken else None) for r in records]


def prior_study_indices(infos: Iterable[Mapping[str, Any]]) -> list[int | None]:
    """Of each study the number of the one that its patient had before it.

    Args:
        infos: the ``json`` of every sample of one split, in the split's order: so no study of another split is found.

    Returns:
        Numbers in that order; None for a first study, and where the shards do not tell the order. Of several studies
        of one earlier moment it is the first in the split's order.
    """
    visits = [(str(info["patient_id"]), info.get("visit")) for info in infos]
    first: dict[str, dict[int, int]] = defaultdict(dict)
    for number, (patient, visit) in enumerate(visits):
        if visit is not None:
            first[patient].setdefault(visit, number)
    latest: dict[tuple[str, int], int] = {}
    for patient, numbers in first.items():
        ordered = sorted(numbers)
        latest |= {(patient, visit): numbers[before] for before, visit in zip(ordered, ordered[1:], strict=False)}
    return [None if visit is None else latest.get((patient, visit)) for patient, visit in visits]
