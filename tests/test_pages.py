"""Every command in README and docs/start.md is understood by the command that it names; links lead somewhere."""

import re
import shlex
from importlib import import_module

import pytest

import medunifier
from shared import config as shared_config
from shared.errors import UsageError

PAGES = ("README.md", "docs/start.md")
TRAININGS = {"stage1_tokenizer/train.py": "stage1_tokenizer.train", "stage2_unified/train.py": "stage2_unified.train"}


class Understood(Exception):
    pass


def commands_of(root, page):
    blocks = re.findall(r"```sh\n(.*?)```", (root / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def understand(words, monkeypatch):
    """Parse a command's arguments as the command itself does, and stop there."""
    if words[0] == "accelerate":
        module, rest = import_module(TRAININGS[words[2]]), words[3:]
    else:
        module, rest = import_module(medunifier.COMMANDS[words[1]][0]), words[2:]

    def parse(*arguments, **options):
        shared_config.parse_config(*arguments, **options)
        raise Understood

    monkeypatch.setattr(module, "parse_config", parse)
    with pytest.raises(Understood):
        module.main(rest)


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_are_understood(root, page, monkeypatch):
    monkeypatch.chdir(root)
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    understood = set()
    for line in commands_of(root, page):
        words = shlex.split(line.split(" #")[0].split(" && ")[0].split(" >")[0])
        if words[0] in ("pip", "git", "cd") or words[1:] == ["--help"]:
            continue
        if words[0] == "make":
            assert set(words[1:]) <= targets, line
        elif words[1] == "completion":
            assert words[2] in ("bash", "zsh")
        else:
            understand(words, monkeypatch)
            understood.add(words[1] if words[0] == "medunifier" else words[2])
    assert {"report", "synthesize", *TRAININGS} <= understood
    if page == "docs/start.md":
        others = {"convert"}  # docs/tokenizer.md has it
        assert understood | others >= {verb for verb in medunifier.COMMANDS}


def test_a_wrong_option_would_be_found(monkeypatch):
    with pytest.raises(UsageError):
        understand(shlex.split("medunifier report --model M --input x --nope"), monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_somewhere(root, page):
    text = (root / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (root / page).parent.joinpath(target).exists(), target


def test_the_endpoints_that_are_named_are_the_servers(root):
    named = set(re.findall(r"[`\"](/[a-z]+)[`\"]", (root / "docs" / "start.md").read_text()))
    source = (root / "stage2_unified" / "app" / "endpoints.py").read_text()
    assert len(named) == 9
    for name in named - {"/health"}:
        assert f"    def {name[1:]}(" in source, name
