"""``medunifier classify``: findings by sentences, for any labels that a sentence can name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shared.artifacts import canonical_json, read_json
from shared.config import parse_config
from shared.errors import UsageError, UserError
from shared.row_file import Row
from stage2_unified.evaluate.prompts import LABEL_SETS, STYLES, PromptSet, prompt_set
from stage2_unified.films import Film, codes_of, open_films
from stage2_unified.prompt_scores import PromptScorer
from stage2_unified.report_command import write_rows

NOTICE = "Scores of research software, not a medical device; not calibrated, not the probability of a disease."
_VALUES = ("similarity", "denial_similarity", "statement_over_denial")


@dataclass(frozen=True)
class ClassifyConfig:
    """Score findings in radiographs (a file, a folder, shards) by the sentences that state and deny them.

    ``similarity`` and ``denial_similarity`` are cosines; ``statement_over_denial`` is the softmax of the two at the
    model's temperature: 0.5 = undecided. It is not calibrated.
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


def main(argv: Sequence[str] | None = None) -> None:
    """Score films, a row each; what cannot be read gets a row with its ``error``.

    Raises:
        UserError: for no model, no input, no prompts of these labels, or no readable radiograph at all.
    """
    config = parse_config(ClassifyConfig, argv, prog="medunifier classify")
    from stage2_unified.inference import MedUnifierPipeline  # here: --help does not wait for torch and transformers

    prompts = chosen_prompts(config.prompts, config.labels)
    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    films = open_films(config.input, config.split, pipeline.tokenizer)
    score = PromptScorer(pipeline, prompts)

    def rows_of(readable: list[Film]) -> list[Row]:
        views = [film.view or config.view for film in readable]
        scores = score(pipeline.embed_images(codes_of(pipeline, readable), views))
        columns = zip(_VALUES, (scores.similarity, scores.denial, scores.preference), strict=True)
        tables = {name: table.tolist() for name, table in columns}
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

    names = [f"{finding} {value}" for finding in score.findings for value in _VALUES]
    write_rows(
        films,
        config.out,
        {
            "command": "classify",
            "model": pipeline.fingerprint,
            "view": config.view,
            "prompts": canonical_json(prompts.to_json()).decode(),
        },
        [films.key_name, "view", *names, "notice", "error"],
        _flat,
        rows_of,
        config.batch_size,
        "classifying",
    )


def chosen_prompts(prompts: str, labels: str) -> PromptSet:
    """The sentences of a style, or of a file, for a label set by name or any names with commas.

    Raises:
        UsageError: for an unknown style.
        UserError: for a file that is no prompt set, or has none of the labels.
    """
    from_file = prompts.endswith(".json")
    if not from_file and prompts not in STYLES:
        raise UsageError(f"prompts must be {', '.join(STYLES)} or a FILE.json, got {prompts!r}")
    if from_file and labels == "all":
        content = read_json(prompts, "a prompt set")
        findings = tuple(content.get("prompts", ())) if isinstance(content, dict) else ()
    else:
        findings = LABEL_SETS.get(labels) or tuple(name.strip() for name in labels.split(",") if name.strip())
    if not findings:
        raise UserError(f"no labels in {labels!r}: give a set ({', '.join(LABEL_SETS)}) or names with commas")
    return prompt_set(prompts, findings)


def _flat(row: Row) -> list[Row]:
    values = {
        f"{finding} {name}": value
        for finding, scores in row.get("findings", {}).items()
        for name, value in scores.items()
    }
    return [row | values]
