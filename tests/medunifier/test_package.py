"""What others import and call: the public names, the table of commands, the direction of imports."""

import inspect
import re
import subprocess
import sys
from importlib import import_module

import pytest

import medunifier
from medunifier.__main__ import COMMANDS, main


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


def public_parts(name):
    """A public name and, of a class, what it has in public that is written here: (where, function or class)."""
    thing = getattr(medunifier, name)
    yield name, thing
    for owner in thing.__mro__ if inspect.isclass(thing) else ():
        if not owner.__module__.startswith("medunifier."):
            continue
        for member, value in vars(owner).items():
            value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if inspect.isfunction(value) and (not member.startswith("_") or member in ("__call__", "__getitem__")):
                yield f"{owner.__name__}.{member}", value


@pytest.mark.parametrize("name", medunifier.__all__)
def test_public_names_and_methods_have_docstrings_and_types(name):
    undocumented, untyped = [], []
    for where, thing in public_parts(name):
        if not (thing.__doc__ or "").strip() or thing.__doc__.startswith(f"{thing.__name__}("):  # a dataclass' own
            undocumented.append(where)
        function = thing.__init__ if inspect.isclass(thing) else thing
        signature = inspect.signature(function)
        bare = [
            p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")
        ]
        if bare or signature.return_annotation is signature.empty:
            untyped.append(f"{where}({', '.join(bare)})")
    assert not undocumented and not untyped


@pytest.mark.slow  # in a new interpreter; tests of the model load it by the Auto classes in this one
def test_a_model_name_registers_the_auto_classes():
    code = (
        "from medunifier import MedUnifierProcessor; from transformers import AutoConfig; "
        "from transformers.models.auto.modeling_auto import MODEL_MAPPING; "
        "print(MODEL_MAPPING[type(AutoConfig.for_model('medunifier'))].__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "MedUnifierForConditionalGeneration"


def help_of(module, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        import_module(module).main([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_and_sub_command_shows_its_help(verb, capsys):
    module, summary = COMMANDS[verb]
    shown = help_of(module, [], capsys)
    assert f"medunifier {verb}" in shown and summary
    nested = re.findall(r"^    (\w[\w-]*)", shown.partition("Available subcommands:")[2], re.MULTILINE)
    for arguments in [[name] for name in nested] or [[]]:
        shown = help_of(module, arguments, capsys)
        options = [" ".join(block.split()) for block in re.split(r"\n  (?=-)", shown)[1:]]
        own = [o for o in options if not re.match(r"(-h|--config|--print_config|--\S+ CONFIG Path to a config)", o)]
        silent = [option for option in own if "(required" not in option and "default: " not in option]
        assert own and not silent, f"{arguments}, neither required nor with a default: {silent}"


def test_help_does_not_wait_for_torch():
    waits = {"tokenize", "convert", "evaluate", "subset"}  # their functions' types are torch's
    code = (
        "import sys; from importlib import import_module; from medunifier.__main__ import COMMANDS\n"
        f"for verb in set(COMMANDS) - {waits}: import_module(COMMANDS[verb][0])\n"
        "print({'torch', 'transformers', 'accelerate', 'matplotlib', 'gradio', 'sklearn'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_training_starts_without_the_metrics_of_its_evaluation():
    """Packages that the first step does not need; scipy and torchvision come with the models of transformers."""
    code = """if True:
        import sys
        metrics = {"torchmetrics", "sklearn", "matplotlib", "pandas", "lpips", "gradio", "jinja2"}
        import medunifier.stage1_tokenizer.train, medunifier.stage1_tokenizer.training.run
        print((metrics | {"scipy", "torchvision", "transformers"}) & set(sys.modules))
        import medunifier.stage2_unified.train, medunifier.stage2_unified.training.run
        print((metrics - {"jinja2"}) & set(sys.modules))
        ours = {".".join(name.split(".")[:3]) for name in sys.modules if name.startswith("medunifier.")}
        print(ours & {"medunifier.stage2_unified." + part for part in ("evaluate", "inference", "app", "export")})
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["set()"] * 3


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["nope"], 2), (["--version"], 0)])
def test_the_table_of_commands(arguments, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["medunifier", *arguments])
    assert main() == code
    out, error = capsys.readouterr()
    assert error.count("\n") == (1 if arguments == ["nope"] else 0)
    assert arguments == ["nope"] or out
