"""``medunifier report``: draft reports for radiographs, a row each; a run that was stopped continues."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.files.row_file import Row, RowFile
from medunifier.shared.progress import Progress
from medunifier.shared.report_page.notice import research_notice
from medunifier.stage2_unified.inference.inputs import Film, Films, keys_digest, open_films, read_batches, seen_of

NOTICE = research_notice("A draft: it may overlook findings and invent others.")


@dataclass(frozen=True)
class ReportConfig:
    """Write draft reports for radiographs: a file, a folder (DICOM, PNG, JPEG) or shards."""

    model: str
    """Model folder (run_dir/model)."""
    input: str
    """A radiograph, a folder that is searched for radiographs, or a folder or URL of shards. Of a study in shards as
    many images are read as the model was trained with, and the visit before if it was trained with that."""
    out: str = ""
    """NAME.csv for a table, another name for JSON lines; empty = JSON lines on standard output. An interrupted run
    is continued by the same command."""
    split: str = ""
    """Of shards: which splits, with commas; empty = all."""
    group_by: Literal["file", "folder"] = "file"
    """Of files: a report each, or one for those of a folder, which are then views of one study."""
    view: str = ""
    """View position (PA, AP, LATERAL) where the file does not name it."""
    batch_size: int = 16
    """Radiographs a pass; memory grows with it, not with the number of radiographs."""
    beams: int = 1
    """Beams of the search; 1 = greedy."""
    device: str | None = None
    """Where the model runs; an accelerator if there is one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.beams < 1:
            raise ValueError("batch_size and beams must be at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Read radiographs, write a row each; what cannot be read gets a row with its ``error``.

    Raises:
        UserError: for no model, no input, or no readable radiograph at all.
    """
    config = parse_config(ReportConfig, argv, prog="medunifier report")
    from medunifier.stage2_unified.inference.pipeline import (
        MedUnifierPipeline,  # here: --help does not wait for torch and transformers
    )

    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    folders = config.group_by == "folder"
    films = open_films(config.input, config.split, pipeline.tokenizer, pipeline.max_views, pipeline.prior, folders)

    def rows_of(readable: list[Film]) -> list[Row]:
        reports = pipeline.write_reports(**seen_of(pipeline, readable, config.view), num_beams=config.beams)
        return [
            {"view": ",".join(shown.view or config.view for shown in (film, *film.others))}
            | ({"prior": film.prior is not None} if pipeline.prior else {})
            | {**report, "labels": label_report(" ".join(report.values())), "notice": NOTICE}
            for film, report in zip(readable, reports, strict=True)
        ]

    write_rows(
        films,
        config.out,
        {"command": "report", "model": pipeline.fingerprint, "view": config.view, "beams": config.beams},
        [
            films.key_name,
            "view",
            *(["prior"] if pipeline.prior else []),
            "findings",
            "impression",
            *OBSERVATIONS,
            "notice",
            "error",
        ],
        lambda row: [row | row.get("labels", {})],
        rows_of,
        config.batch_size,
        "reports",
    )


def write_rows(
    films: Films,
    out: str,
    run: dict[str, Any],
    columns: Sequence[str],
    flat: Callable[[Row], list[Row]],
    rows_of: Callable[[list[Film]], list[Row]],
    batch_size: int,
    what: str,
) -> None:
    """A row a film into ``out``, continued where an earlier run stopped.

    Args:
        films: what is read.
        out, columns, flat: as :class:`medunifier.shared.files.row_file.RowFile` has them.
        run: what tells this run from another; the films' keys are added.
        rows_of: readable films -> a row each, without key.
        batch_size: films at a time.
        what: for the progress bar.

    Raises:
        UserError: if no film at all is readable; nothing is left behind then.
    """
    run = run | {"films": len(films.keys), "keys_sha256": keys_digest(films)}
    with RowFile(out, run, columns, flat) as file:
        if file.done:
            print(f"{out} is done already")
            return
        first_error = ""
        with Progress(len(films.keys), what, "images", done=file.count) as progress:
            for batch in read_batches(films, file.count, batch_size):
                readable = [film for film in batch if not film.error]
                first_error = first_error or next((film.error for film in batch if film.error), "")
                made = iter(rows_of(readable) if readable else [])
                rows = [{"error": film.error} if film.error else next(made) for film in batch]
                file.add([{films.key_name: film.key} | row for film, row in zip(batch, rows, strict=True)])
                progress.advance(len(batch))
        if file.failed == len(films.keys):
            file.discard()
            raise UserError(
                f"none of the {file.failed} files could be read as a radiograph "
                f"(first: {films.keys[0]}, {first_error})"
            )
        file.finish()
        if out:
            unreadable = f", {file.failed} of them unreadable" if file.failed else ""
            print(f"{out}: {file.count} rows{unreadable}")
