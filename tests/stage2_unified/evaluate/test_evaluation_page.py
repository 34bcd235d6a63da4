"""docs/evaluation.md keeps up with the command's forms, its options and the names of the figures."""

import re
import shlex

from shared.config import parse_config
from stage2_unified.evaluate.command import TASKS, EvaluateConfig
from stage2_unified.evaluate.compare import CompareConfig, _as_list
from stage2_unified.evaluate.draws import DrawConfig
from stage2_unified.evaluate.fine_tuning import FineTuning
from stage2_unified.evaluate.other_embeddings import OtherEmbeddingsConfig
from stage2_unified.evaluate.other_images import OtherImagesConfig
from stage2_unified.evaluate.other_reports import OtherReportsConfig
from stage2_unified.evaluate.prompts import LABEL_SETS, STYLES

FORMS = {
    "--predictions": OtherReportsConfig,
    "--generated": OtherImagesConfig,
    "--embeddings": OtherEmbeddingsConfig,
    "--draw": DrawConfig,
}


def read(words):
    """The configuration that a line of the page stands for."""
    if words[0] == "--compare":
        return parse_config(CompareConfig, _as_list(words))
    form = next((config for option, config in FORMS.items() if option in words), EvaluateConfig)
    return parse_config(form, words if words[0].startswith("--") else words[1:])


def page_of(root):
    return (root / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_its_commands_are_understood(root):
    blocks = re.findall(r"```sh\n(.*?)```", page_of(root), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line]
    assert len(lines) == 12 and all(line[:2] == ["medunifier", "evaluate"] for line in lines)
    kinds = {type(read([word.replace("TASK", "all") for word in line[2:]])) for line in lines}
    assert kinds == {EvaluateConfig, CompareConfig, *FORMS.values()}


def test_its_options_exist(root):
    known = {
        f"--{name}"
        for config in (EvaluateConfig, CompareConfig, *FORMS.values())
        for name in config.__dataclass_fields__
    } | {"--text", "--source", "--validate_share", "--test_share"}  # of ingest
    options = set(re.findall(r"--[a-z_]+", page_of(root)))
    assert options - {"--scorers"} <= known, options - known
    scorers = EvaluateConfig.__dataclass_fields__["scorers"].default_factory()
    assert set(re.findall(r"--scorers\.(\w+)", page_of(root))) <= set(vars(scorers))
    assert set(re.findall(r"--finetune\.(\w+)", page_of(root))) <= set(vars(FineTuning()))


def test_it_names_every_style_every_set_and_every_task(root):
    page = page_of(root)
    assert all(f"`{name}`" in page for name in (*STYLES, *LABEL_SETS, *TASKS))
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert (root / "docs" / target).exists(), target
