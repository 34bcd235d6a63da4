"""docs/evaluation.md names the options, prompt styles, label sets and tasks that exist."""

import re
import shlex

from medunifier.shared.config import parse_subcommand
from medunifier.stage2_unified.evaluate import command
from medunifier.stage2_unified.evaluate.classifiers.heads import FineTuning
from medunifier.stage2_unified.evaluate.command import TASKS, EvaluateConfig
from medunifier.stage2_unified.evaluate.subsets import subset
from medunifier.stage2_unified.inference.prompts import LABEL_SETS, STYLES

TABLES = {"evaluate": command.SUBCOMMANDS, "subset": subset.SUBCOMMANDS}


def page_of(root):
    return (root / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_its_commands_parse(root):
    blocks = re.findall(r"```sh\n(.*?)```", page_of(root), re.DOTALL)
    shown = set()
    for line in (line for block in blocks for line in block.splitlines() if line):
        program, verb, *arguments = shlex.split(line.replace("TASK", "all"))
        assert program == "medunifier"
        shown.add(parse_subcommand(TABLES[verb], arguments, prog=verb, metavar="TASK", description="")[0])
    tasks = {"tokenizer", "retrieval", "reports", "synthesis"}  # as ``all``
    assert shown == {*command.SUBCOMMANDS, *subset.SUBCOMMANDS} - tasks


def test_its_options_exist(root):
    known = {
        f"--{name}"
        for table in TABLES.values()
        for subcommand in table.values()
        for name in subcommand.config_class.__dataclass_fields__
    } | {"--text", "--source", "--no_finding", "--validate_fraction", "--test_fraction"}  # of ingest
    options = set(re.findall(r"--[a-z_]+", page_of(root)))
    assert options - {"--scorers"} <= known, options - known
    scorers = EvaluateConfig.__dataclass_fields__["scorers"].default_factory()
    assert set(re.findall(r"--scorers\.(\w+)", page_of(root))) <= set(vars(scorers))
    assert set(re.findall(r"--finetune\.(\w+)", page_of(root))) <= set(vars(FineTuning()))


def test_it_names_every_prompt_style_label_set_and_task(root):
    page = page_of(root)
    missing = [name for name in (*STYLES, *LABEL_SETS, *TASKS) if f"`{name}`" not in page]
    assert not missing
