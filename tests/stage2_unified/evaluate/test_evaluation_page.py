"""docs/evaluation.md names the options, prompt styles, label sets and tasks that exist."""

import re

from stage2_unified.evaluate.command import TASKS, EvaluateConfig
from stage2_unified.evaluate.compare import CompareConfig
from stage2_unified.evaluate.draws import DrawConfig
from stage2_unified.evaluate.fine_tuning import FineTuning
from stage2_unified.evaluate.other_embeddings import OtherEmbeddingsConfig
from stage2_unified.evaluate.other_images import OtherImagesConfig
from stage2_unified.evaluate.other_reports import OtherReportsConfig
from stage2_unified.evaluate.prompts import LABEL_SETS, STYLES

CONFIGS = (
    EvaluateConfig, CompareConfig, OtherReportsConfig, OtherImagesConfig, OtherEmbeddingsConfig, DrawConfig,
)  # fmt: skip


def page_of(root):
    return (root / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_its_options_exist(root):
    known = {f"--{name}" for config in CONFIGS for name in config.__dataclass_fields__} | {
        "--text",
        "--source",
        "--validate_share",
        "--test_share",
    }  # of ingest
    options = set(re.findall(r"--[a-z_]+", page_of(root)))
    assert options - {"--scorers"} <= known, options - known
    scorers = EvaluateConfig.__dataclass_fields__["scorers"].default_factory()
    assert set(re.findall(r"--scorers\.(\w+)", page_of(root))) <= set(vars(scorers))
    assert set(re.findall(r"--finetune\.(\w+)", page_of(root))) <= set(vars(FineTuning()))


def test_it_names_every_style_every_set_and_every_task(root):
    page = page_of(root)
    missing = [name for name in (*STYLES, *LABEL_SETS, *TASKS) if f"`{name}`" not in page]
    assert not missing
