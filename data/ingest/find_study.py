"""``medunifier ingest --find``: the files of a pseudonym, given the key; or what has none, since it was left out."""

from collections.abc import Sequence

from medunifier.data.ingest.pseudonyms import pseudonym
from medunifier.data.records import Problem, StudyRecord
from medunifier.data.remote_paths import is_file
from medunifier.data.sources import SourceOptions, read_source
from medunifier.shared.errors import UserError

LEFT_OUT = "left_out"
"""In place of a pseudonym: what has none, because it never became a study, and images that are missing."""

NOTHING_LEFT_OUT = (
    "every file and table row belongs to a study, and no image is missing; images that cannot be read are listed in "
    "rejects.csv, and --find STUDY prints their files"
)


def find_left_out(source: str, root: str, options: SourceOptions) -> list[str]:
    """Return a line per file or table row that the source left out, and per missing image: where it is, and why.

    Raises:
        UserError: if the archive cannot be read at all.
    """
    problems: list[Problem] = []
    missing: list[Problem] = []
    try:
        for record in read_source(source, root, options, problems).records:
            missing += [Problem("image is missing", str(v.path)) for v in record.views if not is_file(v.path)]
    except UserError:
        if not problems:  # otherwise everything was left out, which is what was asked for
            raise
    return [f"{problem.where}: {problem.reason}" for problem in problems + missing]


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
