"""``medunifier ingest --find``: the way back from a pseudonym to the archive, for whoever holds both and the key."""

from collections.abc import Sequence

from medunifier.data.ingest.pseudonyms import pseudonym
from medunifier.data.records import StudyRecord
from medunifier.shared.errors import UserError


def find_study(records: Sequence[StudyRecord], key: bytes, name: str) -> list[str]:
    """A line a film of the study or patient with the pseudonym ``name``: study's pseudonym, view's number, path.

    Raises:
        UserError: if no study and no patient has it.
    """
    lines = []
    for record in records:
        study = pseudonym(key, "study", record.study_id)
        if name in (study, pseudonym(key, "patient", record.patient_id)):
            lines += [f"{study} view {number}: {view.path}" for number, view in enumerate(record.views)]
    if not lines:
        raise UserError(
            f"no study and no patient of this archive has the pseudonym {name}: is it the same --root, --options and "
            "--key_file as at ingest?"
        )
    return lines
