from dataclasses import dataclass, field

import pytest
import yaml

from medunifier.shared.command import run_command
from medunifier.shared.config import (
    Subcommand,
    config_differences,
    config_to_dict,
    load_saved_config,
    parse_config,
    parse_subcommand,
    save_config,
    with_later_options,
)
from medunifier.shared.errors import UsageError


@dataclass(frozen=True)
class Inner:
    """Inner."""

    lr: float = 0.1
    """Rate."""


@dataclass(frozen=True)
class Outer:
    """A command for tests."""

    name: str
    """A name."""
    optim: Inner = field(default_factory=Inner)
    """Nested."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Pair."""

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("name must not be bad")


@dataclass(frozen=True)
class Switched:
    """A command with switches."""

    check: bool = False
    """Look."""
    number: int = 1
    """Number."""


@pytest.mark.parametrize(
    ("arguments", "check"),
    [([], False), (["--check"], True), (["--check", "--number", "1"], True), (["--check", "false"], False),
     (["--number", "1", "--check=true"], True)],
)  # fmt: skip
def test_a_boolean_option_is_a_switch_that_may_have_a_value(arguments, check):
    assert parse_config(Switched, arguments) == Switched(check, 1)


def test_a_switch_with_another_value_is_refused():
    with pytest.raises(UsageError, match="check.*maybe"):
        parse_config(Switched, ["--check", "maybe"])


def test_file_then_override(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\noptim:\n  lr: 0.2\n")
    assert parse_config(Outer, ["--config", str(path)]) == Outer("x", Inner(0.2))
    assert parse_config(Outer, ["--config", str(path), "--optim.lr", "1e-4"]).optim.lr == 1e-4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--name", "x", "--nope", "1"], "nope"),
        (["--name", "x", "--optim.nope", "1"], "optim.nope"),
        (["--name", "x", "--optim.lr", "fast"], "optim.lr"),
        ([], "name"),
        (["--name", "bad"], "name must not be bad"),
        (["--name", "x", "--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_wrong_use_is_one_line_that_names_the_key_and_code_2(arguments, named, capsys):
    def command(argv):
        parse_config(Outer, argv, prog="test")

    assert run_command(command, arguments) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_unknown_key_in_a_file_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\noptim:\n  rate: 0.2\n")
    with pytest.raises(UsageError, match="rate"):
        parse_config(Outer, ["--config", str(path)])


def test_saved_configuration_reads_back_and_differences_are_dotted(tmp_path):
    config = Outer("x", Inner(0.3))
    save_config(config, tmp_path / "c.yaml")
    assert parse_config(Outer, ["--config", str(tmp_path / "c.yaml")]) == config
    saved = load_saved_config(tmp_path / "c.yaml")
    assert saved == yaml.safe_load((tmp_path / "c.yaml").read_text())
    assert config_differences(saved, config_to_dict(Outer("x"))) == ["optim.lr: 0.3 -> 0.1"]


def test_a_run_from_before_an_option_existed_is_the_run_with_its_default():
    before = {"name": "x", "optim": {}}
    assert config_differences(with_later_options(before, Outer("x")), config_to_dict(Outer("x"))) == []
    assert config_differences(with_later_options({"name": "x"}, Outer("x")), config_to_dict(Outer("x"))) == []
    changed = config_differences(with_later_options(before, Outer("x")), config_to_dict(Outer("x", Inner(0.3))))
    assert changed == ["optim.lr: 0.1 -> 0.3"]
    assert with_later_options({}, Outer("x")).get("name") is None


def test_an_option_that_exists_no_more_stops_a_saved_run_only_if_it_was_on():
    now = config_to_dict(Outer("x"))
    gone = config_differences(with_later_options(now | {"kernel": False}, Outer("x")), now)
    assert gone == []
    (line,) = config_differences(with_later_options(now | {"kernel": True}, Outer("x")), now)
    assert line.startswith("kernel")


def test_help_shows_defaults_and_docstrings(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(Outer, ["--help"], prog="test")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Rate." in shown and "0.1" in shown and "--optim.lr" in shown


@dataclass(frozen=True)
class Pair:
    """Two files."""

    a: str
    """First."""
    b: str
    """Second."""
    seed: int = 0
    """Seed."""


COMMANDS = {
    "outer": Subcommand(Outer, "the outer"),
    "set-off": Subcommand(Switched),
    "pair": Subcommand(Pair, positional=True),
}


def parsed(*argv):
    return parse_subcommand(COMMANDS, argv, prog="test run", metavar="TASK", description="Run.")


def test_a_sub_command_reads_its_own_options(tmp_path):
    assert parsed("outer", "--name", "x", "--optim.lr", "0.5") == ("outer", Outer("x", Inner(0.5)))
    assert parsed("set-off", "--check") == ("set-off", Switched(check=True))
    assert parsed("pair", "a.json", "b.json", "--seed=3") == ("pair", Pair("a.json", "b.json", 3))
    (tmp_path / "c.yaml").write_text("name: y\n")
    assert parsed("outer", "--config", str(tmp_path / "c.yaml")) == ("outer", Outer("y"))


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], ["TASK", "outer, set-off, pair"]),
        (["inner"], ["TASK", "'inner'", "outer, set-off, pair"]),
        (["outer"], ["required: name"]),
        (["outer", "--name", "bad"], ["must not be bad"]),
        (["outer", "--name", "x", "--check"], ["--check"]),
        (["pair", "outer.a"], ["required: b"]),
        (["pair", "a", "b", "c"], ["c"]),
        (["outer", "--config", "none.yaml"], ["none.yaml"]),
    ],
)
def test_a_wrong_sub_command_is_one_line_that_names_it(argv, named):
    with pytest.raises(UsageError) as refusal:
        parsed(*argv)
    assert all(text in str(refusal.value) for text in named) and "\n" not in str(refusal.value)


def test_the_help_of_a_sub_command_is_its_own(capsys):
    for argv, here, absent in (([], "the outer", "--name"), (["outer"], "--optim.lr", "--check")):
        with pytest.raises(SystemExit):
            parsed(*argv, "--help")
        shown = capsys.readouterr().out
        assert here in shown and absent not in shown


@dataclass(frozen=True)
class Loop:
    """Nested."""

    steps: int = 3
    """Steps."""


@dataclass(frozen=True)
class Train:
    """A command."""

    run_dir: str = ""
    """Folder."""
    loop: Loop = field(default_factory=Loop)
    """Loop."""


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--rundir", "x"], "--run_dir"),
        (["--loop.stesp=3"], "--loop.steps"),
        (["--steps", "3"], "--loop.steps"),
        (["--config", "FILE"], "--loop.steps"),
    ],
)
def test_the_nearest_option_is_suggested(words, meant, tmp_path):
    (tmp_path / "c.yaml").write_text("loop:\n  step: 3\n")
    arguments = [str(tmp_path / "c.yaml") if word == "FILE" else word for word in words]
    with pytest.raises(UsageError, match=f"{meant}\\b"):
        parse_config(Train, arguments)
    with pytest.raises(UsageError, match=f"{meant}\\b"):
        parse_subcommand({"run": Subcommand(Train)}, ["run", *arguments], prog="p", metavar="TASK", description="d")


def test_a_misspelt_option_is_named_although_a_required_one_is_missing():
    for words in (["--optim.lrr", "3"], ["--optim.lr", "0.1", "--beta", "[1, 2]"]):
        with pytest.raises(UsageError) as error:
            parse_config(Outer, words)
        meant = {"--optim.lrr": "--optim.lr", "--optim.lr": "--betas"}[words[0]]
        assert f"{meant}?" in str(error.value), words
    for words in ([], ["--optim.lr", "0.1"], ["--betas=[1, 2]"], ["--optim.lr=1"]):
        with pytest.raises(UsageError, match="name") as error:
            parse_config(Outer, words)
        assert "unknown" not in str(error.value), words


def test_the_beginning_of_an_option_is_not_the_option():
    for words in (["--optim.l", "0.1"], ["--bet", "[1, 2]"]):
        with pytest.raises(UsageError, match=words[0]):
            parse_config(Outer, ["--name", "x", *words])


def test_nothing_is_suggested_for_what_resembles_nothing():
    with pytest.raises(UsageError) as error:
        parse_config(Train, ["--zzzzqq", "3"])
    assert "mean" not in str(error.value)
    with pytest.raises(UsageError, match="mean train"):
        parse_subcommand({"train": Subcommand(Train)}, ["tran"], prog="p", metavar="TASK", description="d")
