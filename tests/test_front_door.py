"""What others import and call: the public names, the table of commands, the direction of imports."""

import ast
import subprocess
import sys
from importlib import import_module

import pytest

import medunifier

FLOORS = ["shared", "data", "stage1_tokenizer", "stage2_unified", "medunifier"]


def test_the_public_names_are_there():
    from medunifier import (
        VQGAN,
        FrozenTokenizer,
        MedUnifierConfig,
        MedUnifierForConditionalGeneration,
        MedUnifierProcessor,
        Phantom,
        ShardDataset,
        label_report,
        read_radiograph,
        split_sections,
    )

    assert all(map(callable, (read_radiograph, split_sections, label_report, Phantom, ShardDataset, VQGAN)))
    assert hasattr(FrozenTokenizer, "from_pretrained") and hasattr(MedUnifierProcessor, "from_pretrained")
    assert MedUnifierForConditionalGeneration.config_class is MedUnifierConfig
    with pytest.raises(AttributeError, match="nope"):
        _ = medunifier.nope


def test_importing_it_registers_the_auto_classes():
    code = (
        "import medunifier; from transformers import AutoConfig; "
        "from transformers.models.auto.modeling_auto import MODEL_MAPPING; "
        "print(MODEL_MAPPING[type(AutoConfig.for_model('medunifier'))].__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "MedUnifierForConditionalGeneration"


@pytest.mark.parametrize("verb", medunifier.COMMANDS)
def test_every_command_shows_its_help(verb, capsys):
    module, summary = medunifier.COMMANDS[verb]
    with pytest.raises(SystemExit) as stop:
        import_module(module).main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"medunifier {verb}" in shown and "--help" in shown and summary


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["nope"], 2), (["--version"], 0)])
def test_the_table_of_commands(arguments, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["medunifier", *arguments])
    assert medunifier.main() == code
    out, error = capsys.readouterr()
    assert error.count("\n") == (1 if arguments == ["nope"] else 0)
    assert arguments == ["nope"] or out


def test_imports_go_one_way(root):
    wrong = []
    for floor, package in enumerate(FLOORS[:-1]):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                wrong += [f"{path}: {n}" for n in names if n.split(".")[0] in FLOORS[floor + 1 :]]
    assert not wrong
