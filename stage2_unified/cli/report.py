"""``medunifier report``: generate draft reports for radiographs, one row each; an interrupted run resumes."""

import sys
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
from medunifier.stage2_unified.cli.outside import OutsideColumns
from medunifier.stage2_unified.inference.inputs import (
    ImageSource,
    StudyImage,
    keys_digest,
    open_inputs,
    read_batches,
    study_inputs,
)

NOTICE = research_notice("A draft: it may overlook findings and invent others.")


@dataclass(frozen=True)
class ReportConfig:
    """Generate draft reports for radiographs: a file, a folder (DICOM, PNG, JPEG) or shards."""

    model: str
    """Model folder (run_dir/model)."""
    input: str
    """A radiograph, a folder of radiographs, or a folder or URL of shards. For shards, the model receives as many
    images of a study as it was trained with, and the prior study if it was trained with priors."""
    out: str = ""
    """NAME.csv for a table, any other name for JSON lines; empty = JSON lines on standard output. The same command
    resumes an interrupted run."""
    split: str = ""
    """For shards: comma-separated splits; empty = all."""
    group_by: Literal["file", "folder"] = "file"
    """For files: one report per file, or one per folder, whose files are then views of one study."""
    outside_root: bool = False
    """For a folder of radiographs: follow links that leave it."""
    view: str = ""
    """View position (PA, AP, LATERAL) for files that do not specify it."""
    batch_size: int | None = None
    """Radiographs per forward pass; default: as many as the free memory of a GPU allows, 32 on a CPU. Results do not
    depend on it."""
    beams: int = 1
    """Beam search width; 1 = greedy decoding."""
    device: str | None = None
    """Device of the model; default: CUDA if available, else the CPU."""

    def __post_init__(self) -> None:
        if (self.batch_size is not None and self.batch_size < 1) or self.beams < 1:
            raise ValueError("batch_size and beams must be at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Generate a report per study and write one row each; an unreadable file gets a row with its ``error``.

    Raises:
        UserError: if there is no model, no input, or no readable radiograph.
    """
    config = parse_config(ReportConfig, argv, prog="medunifier report")
    # Imported here so that --help does not wait for torch and transformers.
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    source = open_inputs(
        config.input,
        config.split,
        pipeline.tokenizer,
        pipeline.max_views,
        pipeline.prior,
        config.group_by == "folder",
        config.outside_root,
    )

    pipeline.expect(len(source.keys) if config.beams == 1 else 0)

    unusual = OutsideColumns(pipeline, config.model)

    def rows_of(readable: list[StudyImage]) -> list[Row]:
        inputs = study_inputs(pipeline, readable, config.view)
        reports = pipeline.write_reports(**inputs, num_beams=config.beams)
        columns = unusual.rows(inputs["codes"], inputs["views"])
        return [
            {"view": ",".join(image.view or config.view for image in (study, *study.others))}
            | ({"prior": study.prior is not None} if pipeline.prior else {})
            | {**report, "labels": label_report("\n\n".join(report.values())), **outside, "notice": NOTICE}
            for study, report, outside in zip(readable, reports, columns, strict=True)
        ]

    write_rows(
        source,
        config.out,
        {"command": "report", "model": pipeline.fingerprint, "view": config.view, "beams": config.beams}
        | unusual.settings,
        [
            source.key_name,
            "view",
            *(["prior"] if pipeline.prior else []),
            "findings",
            "impression",
            *OBSERVATIONS,
            *unusual.names,
            "notice",
            "error",
        ],
        lambda row: [row | row.get("labels", {})],
        rows_of,
        pipeline.batch_size,
        "reports",
    )
    unusual.print_count()


def print_rows(out: str, file: RowFile) -> None:
    """Print the number of rows and of unreadable inputs; on standard error, and only the latter, without ``out``."""
    unreadable = f", {file.failed} of them unreadable" if file.failed else ""
    if out:
        print(f"{out}: {file.count} rows{unreadable}")
    elif unreadable:
        print(f"{file.count} rows{unreadable}", file=sys.stderr)


def write_rows(
    source: ImageSource,
    out: str,
    run: dict[str, Any],
    columns: Sequence[str],
    flatten: Callable[[Row], list[Row]],
    rows_of: Callable[[list[StudyImage]], list[Row]],
    batch_size: int,
    task: str,
) -> None:
    """Write one row per input to ``out``, resuming an interrupted run.

    Args:
        source: the inputs.
        out, columns, flatten: as for :class:`medunifier.shared.files.row_file.RowFile`.
        run: settings that identify this run; the number and digest of the inputs are added.
        rows_of: maps readable inputs to one row each, without the key.
        batch_size: inputs per call of ``rows_of``.
        task: label of the progress bar.

    Raises:
        UserError: if no input is readable; then no file is left behind.
    """
    run = run | {"images": len(source.keys), "keys_sha256": keys_digest(source)}
    with RowFile(out, run, columns, flatten) as file:
        if file.done:
            print(f"{out} is already complete")
            return
        first_error = ""
        with Progress(len(source.keys), task, "images", done=file.count) as progress:
            for batch in read_batches(source, file.count, batch_size):
                readable = [image for image in batch if not image.error]
                first_error = first_error or next((image.error for image in batch if image.error), "")
                results = iter(rows_of(readable) if readable else [])
                rows = [{"error": image.error} if image.error else next(results) for image in batch]
                file.add([{source.key_name: image.key} | row for image, row in zip(batch, rows, strict=True)])
                progress.advance(len(batch))
        if file.failed == len(source.keys):
            file.discard()
            raise UserError(
                f"none of the {file.failed} files could be read as a radiograph "
                f"(first: {source.keys[0]}, {first_error})"
            )
        file.finish()
        print_rows(out, file)
