"""Continue, report done, or refuse: compare the stored settings of interrupted work to the requested ones.

A resumable command writes its settings first. The same settings continue; others are refused, since one folder would
mix the results of two runs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunifier.shared.artifacts import PARTIAL_PREFIX, read_json, write_json
from medunifier.shared.command import can_continue
from medunifier.shared.errors import UserError


def refuse_other_settings(place: Path, stored: Any, requested: Mapping[str, Any], option: str = "--out") -> None:
    """Return if ``stored`` equals ``requested``.

    Args:
        place: file or folder with the stored settings.
        stored: its settings; None if it has none.
        requested: settings of this run, as JSON values.
        option: option that selects another path.

    Raises:
        UserError: naming the settings that differ. Values are shown for numbers alone: a text may be from a report.
    """
    if stored == requested:
        return
    if not isinstance(stored, Mapping):
        raise UserError(f"{place} exists without a record of its settings: pass another {option}, or remove it")
    differing = [
        f"{name}: {stored[name]} -> {requested[name]}"
        if all(isinstance(side.get(name), int | float) for side in (stored, requested))
        else name
        for name in {**stored, **requested}
        if name not in stored or name not in requested or stored[name] != requested[name]
    ]
    raise UserError(
        f"{place} was made from other data or with other settings (different: {', '.join(differing)}): "
        f"pass another {option}, or remove it"
    )


def refuse_occupied(folder: Path, own: str = "", option: str = "--out") -> None:
    """Return if ``folder`` is absent, or empty except for ``own`` and remnants of a killed process.

    Raises:
        UserError: if it is a file or holds anything else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: pass another {option}")
    if any(entry.name != own and not entry.name.startswith(PARTIAL_PREFIX) for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty: pass another {option}, or an empty folder")


def begin_or_continue(
    record: Path, requested: Mapping[str, Any], folder: Path | None = None, option: str = "--out"
) -> bool:
    """Return True if ``record`` has the requested settings; if there is no record, write it and return False.

    Args:
        record: JSON file of the settings, in ``folder`` or below.
        requested: settings of this run, as JSON values.
        folder: output folder, by default the record's; a new run needs it empty.
        option: option that selects another folder.

    Raises:
        UserError: if the record has other settings, or there is none and the folder is not empty.
    """
    folder = folder or record.parent
    if record.is_file():
        refuse_other_settings(folder, read_json(record, "interrupted work", any_text=True), requested, option)
        can_continue()
        return True
    refuse_occupied(folder, record.relative_to(folder).parts[0], option)
    write_json(record, requested)
    can_continue()
    return False
