"""``medunifier classify``: findings by sentences, for any labels that a sentence can name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medunifier.shared.artifacts import canonical_json
from medunifier.shared.config import parse_config
from medunifier.shared.files.row_file import Row
from medunifier.shared.report_page.notice import research_notice
from medunifier.stage2_unified.cli.report import write_rows
from medunifier.stage2_unified.inference.inputs import Film, codes_of, open_films
from medunifier.stage2_unified.inference.prompts import chosen_prompts
from medunifier.stage2_unified.inference.zero_shot import PromptScorer

NOTICE = research_notice("The scores are not calibrated and not the probability of a disease.")
_VALUES = ("similarity", "denial_similarity", "statement_over_denial")
_IN_DRAFTS = "sampled_probability"


@dataclass(frozen=True)
class ClassifyConfig:
    """Score findings in radiographs (a file, a folder, shards) by the sentences that state and deny them.

    ``similarity`` and ``denial_similarity`` are cosines; ``statement_over_denial`` is the softmax of the two at the
    model's temperature: 0.5 = undecided. It is not calibrated. ``sampled_probability`` is the fraction of
    sampled reports that state the finding.
    """

    model: str
    """Model folder (run_dir/model)."""
    input: str
    """A radiograph, a folder that is searched for radiographs, or a folder or URL of shards (one image a study)."""
    out: str = ""
    """NAME.csv for a table, another name for JSON lines; empty = JSON lines on standard output. An interrupted run
    is continued by the same command."""
    labels: str = "all"
    """A set by name (all, chexpert5, chexpert8, medunifier5, rsna) or any names with commas ("edema, pacemaker").
    With prompts from a file: "all" = all of the file's."""
    prompts: str = "sentence"
    """sentence: "There is edema." / "There is no edema."; chexzero: "Edema." / "No edema."; biovil; severity; or
    FILE.json: {"combine": "mean" or "max", "prompts": {label: {"positive": [...], "negative": [...]}}}."""
    drafts: int = 0
    """Reports sampled of each radiograph, to see how often they state a finding, for those of the 14 observations;
    0 = none."""
    split: str = ""
    """Of shards: which splits, with commas; empty = all."""
    view: str = ""
    """View position (PA, AP, LATERAL) where the file does not name it."""
    batch_size: int = 16
    """Radiographs a pass."""
    device: str | None = None
    """Where the model runs; an accelerator if there is one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.drafts < 0:
            raise ValueError(f"drafts must be at least 0, got {self.drafts}")


def main(argv: Sequence[str] | None = None) -> None:
    """Score films, a row each; what cannot be read gets a row with its ``error``.

    Raises:
        UserError: for no model, no input, no prompts of these labels, or no readable radiograph at all.
    """
    config = parse_config(ClassifyConfig, argv, prog="medunifier classify")
    # Here: --help does not wait for torch and transformers.
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
    from medunifier.stage2_unified.inference.sampled_findings import sampled_probability

    prompts = chosen_prompts(config.prompts, config.labels)
    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    films = open_films(config.input, config.split, pipeline.tokenizer)
    score = PromptScorer(pipeline, prompts)

    def rows_of(readable: list[Film]) -> list[Row]:
        views = [film.view or config.view for film in readable]
        codes = codes_of(pipeline, readable)
        scores = score(pipeline.embed_images(codes, views))
        columns = zip(_VALUES, (scores.similarity, scores.denial, scores.preference), strict=True)
        tables = {name: table.tolist() for name, table in columns}
        if config.drafts:
            shares = sampled_probability(pipeline, codes, views, config.drafts)
            unknown = [math.nan] * len(views)
            by_finding = [
                shares[name].tolist() if name in shares else unknown for name in map(str.lower, score.findings)
            ]
            tables[_IN_DRAFTS] = [list(row) for row in zip(*by_finding, strict=True)]
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
                "notice": NOTICE,
            }
            for row, view in enumerate(views)
        ]

    values = (*_VALUES, _IN_DRAFTS) if config.drafts else _VALUES
    names = [f"{finding} {value}" for finding in score.findings for value in values]
    write_rows(
        films,
        config.out,
        {
            "command": "classify",
            "model": pipeline.fingerprint,
            "view": config.view,
            "prompts": canonical_json(prompts.to_json()).decode(),
            "drafts": config.drafts,
        },
        [films.key_name, "view", *names, "notice", "error"],
        _flat,
        rows_of,
        config.batch_size,
        "classifying",
    )


def _flat(row: Row) -> list[Row]:
    values = {
        f"{finding} {name}": value
        for finding, scores in row.get("findings", {}).items()
        for name, value in scores.items()
    }
    return [row | values]
