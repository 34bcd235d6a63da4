"""What is to be drawn: a text, findings by name, or a file of either, each with its own number and view."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunifier.shared.errors import UsageError, UserError
from medunifier.shared.files.input_files import MAX_JSON_BYTES, parse_json_lines, read_bounded
from medunifier.stage2_unified.inference.report_text import LABEL_TEMPLATE, report_of, text_of_labels

_MOST = 1_000_000  # radiographs a prompt: a slip of the keyboard, beyond


@dataclass(frozen=True)
class GenerationPrompt:
    """A report to draw from.

    Attributes:
        report: ``findings`` and ``impression``.
        count: studies of it.
        view: ViewPosition; several of one study with commas.
    """

    report: dict[str, str]
    count: int
    view: str

    @property
    def views(self) -> list[str]:
        """View positions of the study's radiographs, in the order in which they are drawn."""
        return [view.strip() for view in self.view.split(",")]


def read_prompts(path: Path, count: int, view: str, template: str = LABEL_TEMPLATE) -> list[GenerationPrompt]:
    """Prompts of a file.

    A ``.txt`` has a report a line. A ``.csv`` or ``.jsonl`` has ``findings`` and ``impression``, or ``labels`` in
    their place (names with ``|``; in JSON also a list, or ``{name: 1 | 0}``), and perhaps ``count`` and ``view``.

    Args:
        path: the file.
        count, view: where a row names none.
        template: sentence of a finding that is given by name.

    Raises:
        UsageError: for another kind of file.
        UserError: if it cannot be read, a count is no number, or no row says what to draw.
    """
    if path.suffix not in (".txt", ".csv", ".jsonl"):
        raise UsageError(f"file must be .txt, .jsonl or .csv, got {path.name}")
    try:
        content = read_bounded(path, MAX_JSON_BYTES).decode("utf-8-sig")
        if path.suffix == ".txt":
            return [GenerationPrompt(report_of(line), count, view) for line in content.splitlines() if line.strip()]
        rows: list[Any] = (
            list(csv.DictReader(content.splitlines()))
            if path.suffix == ".csv"
            else list(parse_json_lines(content.encode(), path, "a prompt", object))
        )
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    prompts = [_prompt(path, number, row, count, view, template) for number, row in enumerate(rows, 1)]
    if not any(any(prompt.report.values()) for prompt in prompts):
        raise UserError(f"{path} has no row with findings, impression or labels")
    return prompts


def _prompt(path: Path, number: int, row: Any, count: int, view: str, template: str) -> GenerationPrompt:
    if not isinstance(row, Mapping):
        raise UserError(f"{path}, row {number}: expected names and values, got {str(row)[:40]}")
    report = {name: str(row.get(name) or "") for name in ("findings", "impression")}
    labels = row.get("labels")
    if labels and not any(report.values()):
        report["findings"] = text_of_labels(labels.split("|") if isinstance(labels, str) else labels, template)
    given = row.get("count")
    if given in (None, ""):
        given = count
    try:
        own = int(given)
        if not 0 <= own <= _MOST:
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(f"{path}, row {number}: count must be a number from 0 to {_MOST}, got {given!r}") from None
    return GenerationPrompt(report, own, str(row.get("view") or view))
