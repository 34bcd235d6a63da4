"""The commands of README and docs, taken from the text, and what reads them."""

import re
import shlex
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from medunifier.__main__ import COMMANDS as COMMANDS_TABLE
from medunifier.shared import config as shared_config

TRAININGS = {
    "stage1_tokenizer/train.py": "medunifier.stage1_tokenizer.train",
    "stage2_unified/train.py": "medunifier.stage2_unified.train",
}
COMMANDS = (
    "medunifier",
    "accelerate",
    "pip",
    "make",
    "git",
    "dask",
    "aws",
    "hf",
    "vllm",
    "sbatch",
    "mkdocs",
    "python",
)
_FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """One command of a page."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """As a shell would split it, without a comment and without what follows the first command."""
        text = re.split(r" (?:&&|>>?|\|) ", self.text)[0]
        return shlex.split(text.replace("<this repository>", "URL"), comments=True)


def pages(root: Path) -> list[str]:
    """README and every page of docs, from the root."""
    return ["README.md", *sorted(path.relative_to(root).as_posix() for path in (root / "docs").rglob("*.md"))]


def commands(root: Path, page: str) -> list[Line]:
    """Every line of the page's ``sh`` blocks, in order; a line that ends with a backslash goes on."""
    found = []
    for language, block in _FENCE.findall((root / page).read_text(encoding="utf-8")):
        if language == "sh":
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found += [Line(page, line.strip()) for line in lines if line.strip() and not line.strip().startswith("#")]
    return found


def strays(root: Path, page: str) -> list[str]:
    """Lines of other blocks that begin like a command: they would escape the tests."""
    blocks = _FENCE.findall((root / page).read_text(encoding="utf-8"))
    text = "\n".join(block for language, block in blocks if language in ("", "text", "console", "shell"))
    return [line for line in text.splitlines() if line.startswith(tuple(f"{name} " for name in COMMANDS))]


class Understood(Exception):
    """A command's own parser has taken all of its arguments."""


def module_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    """The module that answers a command, and what it is given; accelerate's part is read by accelerate's parser."""
    if words[0] == "medunifier":
        return COMMANDS_TABLE[words[1]][0], words[2:]
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_args(words[2:])
    if given.config_file is not None:
        assert Path(given.config_file).is_file(), given.config_file
    name = given.training_script if given.module else TRAININGS[given.training_script]
    return name, given.training_script_args


def understand(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a command to the very parser that reads it, and stop there.

    Raises:
        UsageError: if it would be refused as wrong use.
    """
    name, arguments = module_and_arguments(words)
    module = import_module(name)
    original = shared_config._instantiate

    def stop(*parsed: object) -> None:
        original(*parsed)  # type: ignore[arg-type]
        raise Understood

    monkeypatch.setattr(shared_config, "_instantiate", stop)
    try:
        with pytest.raises(Understood):
            module.main(arguments)
    finally:
        monkeypatch.undo()
