"""Order of a patient's studies, stored in the shards as a visit number, so that they need no dates."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medunifier.data.records import StudyRecord


def number_visits(records: Sequence[StudyRecord]) -> list[StudyRecord]:
    """Return every record with its ``visit``: the rank of its ``taken`` time among those of its patient, from 0.

    Studies with equal times share a number, since their order is unknown; a study without time has none.
    """
    times: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.taken:
            times[record.patient_id].add(record.taken)
    visits = {
        patient: {taken: visit for visit, taken in enumerate(sorted(all_taken))}
        for patient, all_taken in times.items()
    }
    return [replace(r, visit=visits[r.patient_id][r.taken] if r.taken else None) for r in records]


def prior_study_indices(infos: Iterable[Mapping[str, Any]]) -> list[int | None]:
    """Return for each study the index of its prior study.

    Args:
        infos: the ``json`` of every sample of one split, in order, so that a prior is always of the same split.

    Returns:
        Indices in that order; None for a first study, and if the shards do not have the order. If several studies
        share the latest earlier time, the first of them in the split's order.
    """
    visits = [(str(info["patient_id"]), info.get("visit")) for info in infos]
    first: dict[str, dict[int, int]] = defaultdict(dict)
    for number, (patient, visit) in enumerate(visits):
        if visit is not None:
            first[patient].setdefault(visit, number)
    latest: dict[tuple[str, int], int] = {}
    for patient, numbers in first.items():
        ordered = sorted(numbers)
        latest |= {(patient, visit): numbers[previous] for previous, visit in zip(ordered, ordered[1:], strict=False)}
    return [None if visit is None else latest.get((patient, visit)) for patient, visit in visits]
