"""Prompts for image generation: a report, findings by name, or a file of either, each with a count and a view."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from medunifier.shared.errors import UsageError, UserError
from medunifier.shared.files.input_files import MAX_JSON_BYTES, parse_json_lines, read_bounded
from medunifier.shared.files.text import decode_text, text_lines
from medunifier.stage2_unified.inference.report_text import (
    LABEL_TEMPLATE,
    check_labels,
    report_of,
    split_denial,
    text_of_labels,
)

_MAX_COUNT = 1_000_000  # radiographs per prompt; a larger number is a typing error


@dataclass(frozen=True)
class GenerationPrompt:
    """A report to generate radiographs from.

    Attributes:
        report: ``findings`` and ``impression``.
        count: number of studies to generate.
        view: ViewPosition; comma-separated for a study with several views.
    """

    report: dict[str, str]
    count: int
    view: str
    labels: tuple[str, ...] = ()
    """Lower-case names of the findings that were passed by name, denied ones included."""

    @property
    def views(self) -> list[str]:
        """View positions of the study's radiographs, in the order of generation."""
        return [view.strip() for view in self.view.split(",")]


def read_prompts(path: Path, count: int, view: str, template: str = LABEL_TEMPLATE) -> list[GenerationPrompt]:
    """Read prompts from a file.

    A ``.txt`` has one report per line. A ``.csv`` or ``.jsonl`` has ``findings`` and ``impression``, or ``labels``
    instead (names separated by ``|``; in JSON also a list, or ``{name: 1 | 0}``), optionally ``count`` and ``view``.

    Args:
        path: the file.
        count, view: defaults for rows that specify none.
        template: sentence for a finding given by name.

    Raises:
        UsageError: for any other file type.
        UserError: if the file cannot be read, a count is not a number, or no row contains a prompt.
    """
    if path.suffix not in (".txt", ".csv", ".jsonl"):
        raise UsageError(f"file must be .txt, .jsonl or .csv, got {path.name}")
    try:
        content = decode_text(read_bounded(path, MAX_JSON_BYTES))
        if path.suffix == ".txt":
            return [GenerationPrompt(report_of(line), count, view) for line in text_lines(content) if line.strip()]
        rows: list[Any] = (
            list(csv.DictReader(StringIO(content, newline="")))
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
    names: tuple[str, ...] = ()
    labels = row.get("labels")
    if labels and not any(report.values()):
        labels = labels.split("|") if isinstance(labels, str) else labels
        report["findings"] = text_of_labels(labels, template)
        names = named_findings(labels, f"{path}, row {number}: ")
    value = row.get("count")
    if value in (None, ""):
        value = count
    try:
        studies = int(value)
        if not 0 <= studies <= _MAX_COUNT:
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(f"{path}, row {number}: count must be from 0 to {_MAX_COUNT}, got {value!r}") from None
    return GenerationPrompt(report, studies, str(row.get("view") or view), names)


def named_findings(labels: Iterable[str], where: str = "") -> tuple[str, ...]:
    """Return the names of labels, without denials.

    Raises:
        UserError: for an unknown or misspelt name; ``where`` begins the message.
    """
    names = tuple(name for name, _ in map(split_denial, labels) if name)
    try:
        check_labels(names, advice="State any other finding in a report (text)")
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    return names
