"""``medunifier ingest --find``: map a pseudonym back to files of the archive, given the key."""

from collections.abc import Sequence

from medunifier.data.ingest.pseudonyms import pseudonym
from medunifier.data.records import StudyRecord
from medunifier.shared.errors import UserError


def find_study(records: Sequence[StudyRecord], key: bytes, name: str) -> list[str]:
    """Return a line per image of the study or patient with pseudonym ``name``: study pseudonym, view index, path.

    Raises:
        UserError: if no study and no patient has this pseudonym.
    """
    lines = []
    for record in records:
        study = pseudonym(key, "study", record.study_id)
        if name in (study, pseudonym(key, "patient", record.patient_id)):
            lines += [f"{study} view {number}: {view.path}" for number, view in enumerate(record.views)]
    if not lines:
        raise UserError(
            f"no study and no patient of this archive has the pseudonym {name}; pass the same --root, --options and "
            "--key_file as at ingest"
        )
    return lines
