"""Read the tables of data sets: check columns, strip cells, treat NaN as blank, record unusable rows."""

import csv
import gzip
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TypeVar

from medunifier.data.files.walk import OUTSIDE_ROOT, list_files
from medunifier.data.records import SPLITS, Problem
from medunifier.data.remote_paths import is_file, lies_under, read_at_most
from medunifier.data.reports.observations import NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN
from medunifier.data.sources import SourceOptions
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import too_large
from medunifier.shared.files.text import decode_text, intact

_SPLIT_NAMES = {
    "train": "train",
    "val": "validate",
    "valid": "validate",
    "validate": "validate",
    "validation": "validate",
    "test": "test",
}

MAX_TABLE_BYTES = 2**31
"""Of a table, after inflation. PadChest's has 150 MB."""
MAX_REPORT_BYTES = 2**20

_SHOWN_HEADS = 500

Key = TypeVar("Key")


class Row(dict[str, str]):
    """One table row, {column: cell}, with its location in ``where`` ("train.csv, line 7")."""

    where = ""


def find_table(root: Path, pattern: str) -> Path | None:
    """Return the CSV table matching a pattern, gzipped or not, or None. Of several versions the last is returned."""
    found = sorted(root.glob(f"{pattern}.csv.gz")) + sorted(root.glob(f"{pattern}.csv"))
    return found[-1] if found else None


def required_table(root: Path, pattern: str, data_set: str) -> Path:
    """Return the table like :func:`find_table`.

    Raises:
        UserError: if it is missing, since ``root`` is then not the top folder of that data set.
    """
    found = find_table(root, pattern)
    if found is None:
        raise UserError(f"{root} has no {pattern}.csv: pass the top folder of {data_set} as --root")
    return found


def read_table(
    path: Path,
    columns: Sequence[str],
    problems: list[Problem],
    *,
    needed: Iterable[str] = (),
    optional: Sequence[str] = (),
    hint: str = "is it the file of another version?",
) -> list[Row]:
    """Read the requested columns of a CSV file, plain or gzipped.

    Column names are matched ignoring case and surrounding spaces (SIIM's is " EncodedPixels"). Cells are
    stripped; "nan", which pandas writes for a missing value, becomes blank.

    Args:
        path: the file.
        columns: required columns.
        problems: receives an entry for each skipped row.
        needed: columns that must not be blank; other rows are skipped.
        optional: further columns, blank if the table lacks them.
        hint: advice for the user about a missing column.

    Raises:
        UserError: if the file cannot be read or lacks columns. The message names them.
    """
    try:
        # Damaged characters are a problem of their row alone, not of the table.
        reader = csv.DictReader(StringIO(decode_text(_table_bytes(path), damaged=True), newline=""))
        heads = reader.fieldnames or []
        present = {head.strip().casefold(): head for head in heads}
        missing = [name for name in columns if name.strip().casefold() not in present]
        if missing:
            names = ", ".join(map(repr, missing))
            # A damaged table may have a cell with line breaks, or of any length, in its first row.
            found = " ".join(", ".join(heads).split())[:_SHOWN_HEADS] or "none"
            raise UserError(f"{path} has no column {names}; it has {found}: {hint}")
        wanted = {name: present.get(name.strip().casefold(), "") for name in (*columns, *optional)}
        rows = []
        for cells in reader:
            row = Row({name: _cell(cells.get(head)) for name, head in wanted.items()})
            row.where = f"{path}, line {reader.line_num}"
            if all(map(intact, row.values())):
                rows.append(row)
            else:
                problems.append(Problem("row with a NUL or U+FFFD character", row.where))
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return with_cells(rows, needed, problems)


def table_columns(path: Path) -> list[str]:
    """Return the column names of a CSV file, plain or gzipped, as they are spelled.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        return next(csv.reader(StringIO(decode_text(_table_bytes(path), damaged=True), newline="")), [])
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _table_bytes(path: Path) -> bytes:
    """The table, unpacked, whatever the packed size was."""
    content = read_at_most(path, MAX_TABLE_BYTES)
    if path.suffix == ".gz":
        with gzip.open(BytesIO(content)) as file:
            content = file.read(MAX_TABLE_BYTES + 1)
        if len(content) > MAX_TABLE_BYTES:
            raise too_large(MAX_TABLE_BYTES)
    return content


def read_text(path: Path) -> str:
    """Return the text of a list or another file of the data set.

    Raises:
        UserError: if it cannot be read, is no regular file, is larger than 2 GiB, or :func:`decode_text` refuses it.
    """
    try:
        return decode_text(read_at_most(path, MAX_TABLE_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def read_report(path: Path, root: Path, options: SourceOptions, problems: list[Problem]) -> str:
    """The report at ``path``; "" where there is none, or where it is not read, which becomes a problem.

    Args:
        path: where the report lies, if it is there.
        root: the folder in which it must lie, with links followed, unless ``options.outside_root``.
        options: of the source.
        problems: takes a line for a report that is not read.
    """
    if not is_file(path):
        return ""
    if not options.outside_root and not lies_under(path, root):
        problems.append(Problem(f"report {OUTSIDE_ROOT}", str(path)))
        return ""
    try:
        text = decode_text(read_at_most(path, MAX_REPORT_BYTES))
        if not text.strip():
            problems.append(Problem("report is empty", str(path)))
        return text
    except OSError as error:
        problems.append(Problem(f"report cannot be read: {error.strerror}", str(path)))
    except ValueError:  # its message quotes bytes of the report
        problems.append(Problem("report is no text: save it as UTF-8", str(path)))
    return ""


def _cell(text: str | None) -> str:
    text = (text or "").strip()
    return "" if text.lower() == "nan" else text


def with_cells(rows: list[Row], needed: Iterable[str], problems: list[Problem]) -> list[Row]:
    """Return the rows without blank ``needed`` cells; the others are recorded as problems."""
    for name in needed:
        problems += [Problem(f"row without {name}", row.where) for row in rows if not row[name]]
        rows = [row for row in rows if row[name]]
    return rows


def grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """Group rows by key, in order of first appearance."""
    groups: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def label_cells(row: Row, problems: list[Problem]) -> dict[str, int]:
    """Parse the 14 label columns of CheXpert and MIMIC-CXR: 1, 0, -1 (also "1.0"); blank means not mentioned."""
    labels = {}
    for name in OBSERVATIONS:
        if cell := row[name]:
            try:
                value = float(cell)
            except ValueError:
                value = float("nan")
            if value in (POSITIVE, NEGATIVE, UNCERTAIN):
                labels[name] = int(value)
            else:
                problems.append(Problem(f"label of {name} is not 1, 0, -1 or blank", row.where))
    return labels


def split_name(name: str, where: str) -> str | None:
    """Normalize the name of a split; None for a blank.

    Raises:
        UserError: for an unknown name.
    """
    if not name:
        return None
    if name.lower() not in _SPLIT_NAMES:
        raise UserError(f"{where}: unknown split {name!r}; use {', '.join(SPLITS)} or leave it empty")
    return _SPLIT_NAMES[name.lower()]


def files_named(ending: str, root: Path, options: SourceOptions, problems: list[Problem]) -> list[Path]:
    """Return the files at any depth under ``root`` whose names have an ending, in any case; links are followed.

    A link that leaves the root, or a folder that cannot be read, is a problem, unless ``options.outside_root``.
    """
    left_out: list[Problem] = []
    found = [
        path
        for path in list_files(root, left_out, options.outside_root, aliases=True)
        if path.name.lower().endswith(ending)
    ]
    problems += [problem for problem in left_out if OUTSIDE_ROOT in problem.reason or "cannot" in problem.reason]
    return found


def files_by_stem(ending: str, root: Path, options: SourceOptions, problems: list[Problem]) -> dict[str, Path]:
    """Return {name without the ending: path} of :func:`files_named`, wherever the archive was unpacked."""
    return {path.name[: -len(ending)]: path for path in files_named(ending, root, options, problems)}
