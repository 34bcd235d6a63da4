"""docs/tokenizer.md keeps up with the commands, the presets and the names of the figures."""

import re
import shlex

from data.ingest import IngestConfig
from shared.bench import load_benchmark
from shared.config import parse_config
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.convert import parse_arguments
from stage1_tokenizer.tokenize import TokenizeConfig
from stage2_unified.evaluate.command import EvaluateConfig


def lines_of(root):
    page = (root / "docs" / "tokenizer.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return page, [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def test_its_commands_are_understood(root, monkeypatch):
    monkeypatch.chdir(root)
    read = []
    for words in lines_of(root)[1]:
        if words[0] == "accelerate":
            read.append(parse_config(Stage1Config, words[3:]))
        elif words[1] == "convert":
            read.append(parse_arguments(words[2:]))
        elif words[1] == "bench":
            read.append(parse_config(load_benchmark(words[2]).Config, words[3:]))
        elif words[1] == "evaluate":
            read.append(parse_config(EvaluateConfig, words[3:]))
        else:
            read.append(parse_config({"ingest": IngestConfig, "tokenize": TokenizeConfig}[words[1]], words[2:]))
    assert len(read) == 8


def test_it_names_every_preset_and_its_links_lead_somewhere(root):
    page, _ = lines_of(root)
    presets = {path.stem for path in (root / "configs" / "stage1").glob("*.yaml")}
    assert presets == set(re.findall(r"^\| `((?:cxr|taming|demo|phantom)\w*)` \|", page, re.MULTILINE))
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert (root / "docs" / target).exists(), target


def test_the_settings_that_it_advises_exist(root):
    page, _ = lines_of(root)
    text = " ".join(path.read_text() for path in (root / "stage1_tokenizer").rglob("*.py"))
    text += (root / "shared" / "loop.py").read_text()
    text += (root / "stage2_unified" / "evaluate" / "tokenizer.py").read_text()
    for name in re.findall(r"`(?:\w+\.)?([a-z]+_[a-z_]+)`", page):
        assert name in text, name
