"""``medunifier classify``: zero-shot classification of radiographs, for any finding that a sentence can state."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from medunifier.data.reports.observations import FINDINGS
from medunifier.shared.artifacts import canonical_json
from medunifier.shared.config import parse_config
from medunifier.shared.files.row_file import Row
from medunifier.shared.report_page.notice import research_notice
from medunifier.stage2_unified.cli.outside import OutsideColumns
from medunifier.stage2_unified.cli.report import write_rows
from medunifier.stage2_unified.inference.inputs import StudyImage, codes_of, open_inputs
from medunifier.stage2_unified.inference.prompts import chosen_prompts, trained_findings, untrained
from medunifier.stage2_unified.inference.zero_shot import PromptScorer

NOTICE = research_notice("The scores are not calibrated and not the probability of a disease.")
_VALUES = ("similarity", "denial_similarity", "statement_over_denial")
_SAMPLED = "sampled_probability"


@dataclass(frozen=True)
class ClassifyConfig:
    """Score findings in radiographs (a file, a folder, or shards) with positive and negative sentences.

    ``similarity`` and ``denial_similarity`` are cosine similarities; ``statement_over_denial`` is their softmax at
    the model's temperature: 0.5 = undecided, not calibrated. ``sampled_probability`` is the fraction of sampled
    reports that state the finding.
    """

    model: str
    """Model folder (run_dir/model)."""
    input: str
    """A radiograph, a folder of radiographs, or a folder or URL of shards (one image per study)."""
    out: str = ""
    """NAME.csv for a table, any other name for JSON lines; empty = JSON lines on standard output. The same command
    resumes an interrupted run."""
    labels: str = ""
    """A label set (all, chexpert5, chexpert8, medunifier5, rsna) or comma-separated names ("edema, pacemaker").
    Empty = the findings that the model was trained on, or all if its card does not list them; with prompts from a
    file, as "all", all findings of the file."""
    prompts: str = "sentence"
    """sentence: "There is edema." / "There is no edema."; chexzero: "Edema." / "No edema."; biovil; severity; or
    FILE.json: {"combine": "mean" or "max", "prompts": {label: {"positive": [...], "negative": [...]}}}."""
    samples: int = 0
    """Reports sampled per radiograph to estimate sampled_probability, for those of the 14 observations; 0 = none."""
    split: str = ""
    """For shards: comma-separated splits; empty = all."""
    outside_root: bool = False
    """For a folder of radiographs: follow links that leave it."""
    view: str = ""
    """View position (PA, AP, LATERAL) for files that do not specify it."""
    batch_size: int | None = None
    """Radiographs per forward pass; default: as many as the free memory of a GPU allows, 32 on a CPU."""
    device: str | None = None
    """Device of the model; default: CUDA if available, else the CPU."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.samples < 0:
            raise ValueError(f"samples must be at least 0, got {self.samples}")


def main(argv: Sequence[str] | None = None) -> None:
    """Score radiographs and write one row each; an unreadable file gets a row with its ``error``.

    Raises:
        UserError: if there is no model, no input, no prompt for these labels, or no readable radiograph.
    """
    config = parse_config(ClassifyConfig, argv, prog="medunifier classify")
    # Imported here so that --help does not wait for torch and transformers.
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
    from medunifier.stage2_unified.inference.sampled_findings import sampled_probability

    trained = trained_findings(config.model)
    learned = ",".join(name for name in trained if name in FINDINGS)
    from_file = config.prompts.endswith(".json")
    labels = config.labels or ("all" if from_file else learned or "all")
    prompts = chosen_prompts(config.prompts, labels)
    if labels == "all" and not config.labels and not from_file:
        print(f"{config.model} does not list the findings of its training data: scoring all", file=sys.stderr)
    warn_of_untrained(untrained(prompts.prompts, trained), trained)
    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    source = open_inputs(config.input, config.split, pipeline.tokenizer, outside_root=config.outside_root)
    score, unusual = PromptScorer(pipeline, prompts), OutsideColumns(pipeline, config.model)

    def rows_of(readable: list[StudyImage]) -> list[Row]:
        views = [image.view or config.view for image in readable]
        codes = codes_of(pipeline, readable)
        scores, outside = score(pipeline.embed_images(codes, views)), unusual.rows(codes, views)
        columns = zip(_VALUES, (scores.similarity, scores.denial, scores.preference), strict=True)
        tables = {name: table.tolist() for name, table in columns}
        if config.samples:
            fractions = sampled_probability(pipeline, codes, views, config.samples)
            unknown = [math.nan] * len(views)
            by_finding = [
                fractions[name].tolist() if name in fractions else unknown for name in map(str.lower, score.findings)
            ]
            tables[_SAMPLED] = [list(row) for row in zip(*by_finding, strict=True)]
        return [
            {
                "view": view,
                "findings": {
                    finding: {
                        name: round(table[row][column], 6)
                        for name, table in tables.items()
                        if not math.isnan(table[row][column])
                    }
                    for column, finding in enumerate(score.findings)
                },
                **outside[row],
                "notice": NOTICE,
            }
            for row, view in enumerate(views)
        ]

    values = (*_VALUES, _SAMPLED) if config.samples else _VALUES
    names = [f"{finding} {value}" for finding in score.findings for value in values]
    write_rows(
        source,
        config.out,
        {
            "command": "classify",
            "model": pipeline.fingerprint,
            "view": config.view,
            "prompts": canonical_json(prompts.to_json()).decode(),
            "samples": config.samples,
            **unusual.settings,
        },
        [source.key_name, "view", *names, *unusual.names, "notice", "error"],
        _flat,
        rows_of,
        pipeline.batch_size,
        "classifying",
    )
    unusual.print_count()


def warn_of_untrained(names: Sequence[str], trained: Sequence[str]) -> None:
    """Print a line on standard error if there are findings that the model was not trained on."""
    if names:
        print(
            f"the model was not trained on {', '.join(names)} (its findings: {', '.join(trained)}): its output for "
            "these is unreliable",
            file=sys.stderr,
        )


def _flat(row: Row) -> list[Row]:
    values = {
        f"{finding} {name}": value
        for finding, scores in row.get("findings", {}).items()
        for name, value in scores.items()
    }
    return [row | values]
