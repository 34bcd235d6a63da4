"""Resumable result rows: JSON lines or CSV, written as they are computed.

Unfinished rows lie in ``OUT.unfinished``: JSON lines, the first one with the settings of the run. When all rows are
present ``OUT`` appears by rename, as JSON lines or CSV by its suffix, with ``OUT.run.json`` (the settings) beside it.
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from medunifier.shared.artifacts import atomic_file, read_json, remove_partial, write_json
from medunifier.shared.command import can_continue
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import parse_json
from medunifier.shared.files.os_services import try_lock
from medunifier.shared.files.settings_record import refuse_other_settings

Row = dict[str, Any]


class RowFile:
    """Result rows that an interrupted run continues.

    Args:
        out: final path; ``.csv`` for CSV, JSON lines otherwise; "" = JSON lines on standard output, which cannot
            be resumed.
        run: settings of the run as JSON values: model, options, input.
        columns: CSV columns.
        flat: maps a row to its CSV rows.

    ``done`` is True if the file exists already; ``count`` is the number of rows written, ``failed`` the number of
    rows with an ``error``.

    Raises:
        UserError: if ``out`` was written or begun with other settings, or another process is writing it.
    """

    def __init__(
        self, out: str, run: Mapping[str, Any], columns: Sequence[str], flat: Callable[[Row], Iterable[Row]]
    ) -> None:
        self._out = Path(out) if out else None
        self._run, self._columns, self._flat = dict(run), list(columns), flat
        self.done, self.count, self.failed = False, 0, 0
        self._file: Any = None
        if self._out is not None:
            self._begin(self._out)

    def _begin(self, out: Path) -> None:
        remove_partial(out.parent, out.name, self._beside.name)
        if out.exists():
            kept = (
                read_json(self._beside, "a result of medunifier", any_text=True) if self._beside.is_file() else None
            )
            refuse_other_settings(out, kept, self._run)
            self.done = True
            self._journal.unlink(missing_ok=True)  # killed between the rename and the removal of the journal
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._journal, "a+b")  # noqa: SIM115, __exit__ closes it
        if not try_lock(self._file, without_locks=True):
            self._file.close()
            raise UserError(f"another process is writing {out}: wait for it, or pass another --out")
        self._continue()
        can_continue()

    @property
    def _journal(self) -> Path:
        assert self._out is not None  # noqa: S101 - narrows a type
        return self._out.with_name(f"{self._out.name}.unfinished")

    @property
    def _beside(self) -> Path:
        assert self._out is not None  # noqa: S101 - narrows a type
        return self._out.with_name(f"{self._out.name}.run.json")

    def _continue(self) -> None:
        """Count complete rows and cut off a truncated last one."""
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            row = parse_json(line, f"{self._journal}, line {number + 1},", "a row", any_text=True)
            if number == 0:
                refuse_other_settings(self._journal, row, self._run)
            if number:
                self.count += 1
                self.failed += "error" in row
            whole += len(line)
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)
        if not whole:
            self._write([self._run])

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows and flush them to disk, so that a kill or a power cut keeps them."""
        if self._out is None:
            for row in rows:
                sys.stdout.write(_line(row).decode())
            sys.stdout.flush()
        else:
            self._write(rows)
        self.count += len(rows)
        self.failed += sum("error" in row for row in rows)

    def _write(self, rows: Sequence[Row]) -> None:
        self._file.write(b"".join(map(_line, rows)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Write the final file from all rows."""
        if self._out is None:
            return
        write_json(self._beside, self._run)  # first: a file without it would be refused as another run's
        with atomic_file(self._out) as partial:
            if self._out.suffix == ".csv":
                with open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                    table = csv.DictWriter(file, self._columns, extrasaction="ignore")
                    table.writeheader()
                    for row in self._rows():
                        table.writerows(self._flat(row))
            else:
                with open(partial, "wb") as lines:
                    lines.writelines(map(_line, self._rows()))
        self._journal.unlink(
            missing_ok=True
        )  # another process may have found ``out`` complete and removed the journal

    def discard(self) -> None:
        """Remove the unfinished rows."""
        if self._out is not None:
            self._journal.unlink(missing_ok=True)

    def _rows(self) -> Iterator[Row]:
        with open(self._journal, "rb") as file:
            next(file)
            for number, line in enumerate(file, start=2):
                yield parse_json(line, f"{self._journal}, line {number},", "a row", any_text=True)


def _line(row: Mapping[str, Any]) -> bytes:
    """Return a row as a JSON line. Bytes of a file name that are not UTF-8 become JSON escapes."""
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
