"""Configuration: frozen dataclasses whose attribute docstrings are the ``--help``, read by jsonargparse.

Every command and both trainings take ``--config FILE.yaml``, dotted overrides (``--optim.lr 1e-4``) and
``--print_config``. What cannot be understood is answered in one line that names the key, with exit code 2.
"""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from medunifier.shared.artifacts import atomic_file
from medunifier.shared.errors import UsageError, UserError, nearest
from medunifier.shared.files.input_files import MAX_CONFIG_BYTES, read_bounded

set_parsing_settings(docstring_parse_attribute_docstrings=True)

CONFIGS = Path(__file__).parents[1] / "configs"
"""Presets: one folder a stage, in the repository and in the wheel."""

Config = TypeVar("Config")


# "unrecognized arguments: --NAME …" of argparse; "does not accept option 'NAME'", "Key 'NAME' is not expected" and
# "Option 'NAME' is not accepted" of jsonargparse.
_UNKNOWN_OPTION = re.compile(r"unrecognized arguments: (--[\w.-]+)|(?:option|key) '([\w.]+)'", re.IGNORECASE)


class _Parser(ArgumentParser):
    """A parser that raises in place of printing its usage over the one line that matters."""

    further_options: Sequence[str] = ()
    _given: Sequence[str] = ()

    def parse_args(self, args: Sequence[str], **options: Any) -> Namespace:  # type: ignore[override]
        self._given = args
        parsed: Namespace = super().parse_args(args, **options)
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = _one_line(message)
        if option := _UNKNOWN_OPTION.search(text):
            dashed, dotted = option.groups()
            text += nearest(dashed or f"--{dotted}", self._options())
        elif "required" in text:  # reported before an unknown option, which is often the missing one, misspelt
            known = self._options()
            given = (word.partition("=")[0].removesuffix("+") for word in self._given if word.startswith("--"))
            if unknown := next((option for option in given if option != "--" and option not in known), None):
                text += f"; unknown option {unknown}{nearest(unknown, known)}"
        raise UsageError(text) from ex

    def _options(self) -> list[str]:
        """Return the options of this parser and of its sub-commands, and those that the command reads itself."""
        found = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        for action in self._actions:
            if isinstance(action.choices, dict):
                for parser in action.choices.values():
                    found += parser._options() if isinstance(parser, _Parser) else []
        return [*dict.fromkeys([*found, *self.further_options])]


def _one_line(message: str) -> str:
    return " ".join(message.split()).removeprefix("Parser key ").rstrip(".")


def parse_config(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
    presets: str = "",
) -> Config:
    """Read a command line (and the YAML that it names) into a frozen dataclass.

    Args:
        config_class: dataclass; nested dataclasses become dotted options.
        argv: arguments without the program's name; those of this process if None.
        prog: name that ``--help`` shows.
        description: what the command does; by default the first line of the dataclass' docstring.
        presets: folder below ``configs/`` whose files ``--config`` also accepts by name (``--config cxr_f16``).

    Raises:
        UsageError: for an unknown key, a value of the wrong type, a missing or an impossible combination
            (a ValueError from the dataclass' ``__post_init__``).
    """
    parser = _parser_of(config_class, description or _summary(config_class), prog)
    arguments = _with_config_paths(list(sys.argv[1:] if argv is None else argv), presets)
    return _instantiate(parser, parser.parse_args(arguments), config_class)


@dataclasses.dataclass(frozen=True)
class Subcommand:
    """A sub-command: its configuration, and what ``--help`` shows.

    Attributes:
        config_class: dataclass of its options.
        summary: one line for the list of sub-commands; by default the first line of the dataclass' docstring.
        description: for the sub-command's own ``--help``; by default the summary.
        presets: as for :func:`parse_config`.
        positional: whether required options are given by position (``compare A.json B.json``).
    """

    config_class: type[Any]
    summary: str = ""
    description: str = ""
    presets: str = ""
    positional: bool = False


def parse_subcommand(
    commands: Mapping[str, Subcommand],
    argv: Sequence[str],
    *,
    prog: str,
    metavar: str,
    description: str,
    further_options: Sequence[str] = (),
) -> tuple[str, Any]:
    """Read ``SUBCOMMAND [options]`` into the name of the sub-command and its configuration.

    Args:
        commands: name -> sub-command, in the order of ``--help``.
        argv: arguments without the program's name.
        prog: name that ``--help`` shows.
        metavar: what ``--help`` calls the sub-command, such as TASK.
        description: what the command does.
        further_options: options that the command has taken out of ``argv``; only suggested for misspelt ones.

    Raises:
        UsageError: for a missing or unknown sub-command, and as :func:`parse_config` does.
    """
    if not argv:
        raise UsageError(f"{prog} needs a {metavar}: {', '.join(commands)}")
    name, arguments = argv[0], list(argv[1:])

    def sub_parser(name: str) -> _Parser:
        command = commands[name]
        parser = _parser_of(
            command.config_class, command.description or summary(name), f"{prog} {name}", command.positional
        )
        parser.further_options = further_options
        return parser

    def summary(name: str) -> str:
        return commands[name].summary or _summary(commands[name].config_class)

    if name in commands:  # the others' parsers are not built: half a second for ten of them
        parser = sub_parser(name)
        values = parser.parse_args(_with_config_paths(arguments, commands[name].presets))
        return name, _instantiate(parser, values, commands[name].config_class)
    if not name.startswith("-"):
        close = nearest(name, commands)
        raise UsageError(f"{prog}: unknown {metavar} {name!r}; there are: {', '.join(commands)}{close}")
    parser = _Parser(prog=prog, description=description, default_env=False, allow_abbrev=False)
    parser.further_options = further_options
    choices = parser.add_subcommands(required=True, metavar=metavar, title="sub-commands")
    for each in commands:
        choices.add_subcommand(each, sub_parser(each), help=summary(each))
    parser.parse_args(_with_config_paths(list(argv), ""))  # prints --help, or refuses the option
    raise UsageError(f"{prog}: the {metavar} comes first")


def _summary(config_class: type[Any]) -> str:
    return (config_class.__doc__ or "").strip().splitlines()[0]


def _parser_of(
    config_class: type[Any], description: str, prog: str | None = None, positional: bool = False
) -> _Parser:
    parser = _Parser(prog=prog, description=description, default_env=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(config_class, nested_key=None, as_positional=positional)
    for action in parser._actions:
        # jsonargparse wants a value with every option; a bare "--check" must mean true.
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True
    return parser


def _instantiate(parser: ArgumentParser, parsed: Namespace, config_class: type[Config]) -> Config:
    try:
        values = parser.instantiate_classes(parsed)
        return config_class(**{f.name: values[f.name] for f in dataclasses.fields(config_class)})  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise UsageError(_one_line(str(error))) from error


def _with_config_paths(arguments: list[str], presets: str) -> list[str]:
    """Replace a preset's name by its file; refuse a missing file, which jsonargparse would parse as YAML text."""
    result = list(arguments)
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            result[index + 1] = _config_path(arguments[index + 1], presets)
        elif argument.startswith("--config="):
            result[index] = f"--config={_config_path(argument.removeprefix('--config='), presets)}"
    return result


def _config_path(name: str, presets: str) -> str:
    if Path(name).is_file():
        return name
    folder = CONFIGS / presets
    if presets and Path(name).name == name and (folder / f"{name}.yaml").is_file():
        return str(folder / f"{name}.yaml")
    names = sorted(path.stem for path in folder.glob("*.yaml")) if presets else []
    known = f"; presets: {', '.join(names)}" if presets else ""
    raise UsageError(f"config file {name} not found{known}{nearest(Path(name).stem, names)}")


def config_to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON and YAML values (paths and tuples included)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Namespace):
            return {key: plain(item) for key, item in vars(value).items()}
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value

    result: dict[str, Any] = plain(config)
    return result


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved configuration as YAML that ``--config`` reads back."""
    with atomic_file(path) as partial:
        partial.write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False), encoding="utf-8")


def load_saved_config(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_config` wrote, as plain values.

    Raises:
        UserError: if the file is absent or is not YAML.
    """
    try:
        loaded = yaml.safe_load(read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not a configuration: expected keys and values")
    return loaded


def with_later_options(saved: dict[str, Any], config: Any) -> dict[str, Any]:
    """A saved configuration as this version has it, so that a run goes on as it was begun.

    Options that came later are at the defaults of ``config``'s; options that exist no more are left out if they were
    off (false, none, zero or empty).
    """
    known = {field.name for field in dataclasses.fields(config)}
    filled = {name: value for name, value in saved.items() if name in known or value}
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if isinstance(filled.get(name), dict) and dataclasses.is_dataclass(value):
            filled[name] = with_later_options(filled[name], value)
        elif name not in filled and field.default is not dataclasses.MISSING:
            filled |= config_to_dict({name: field.default})
        elif name not in filled and field.default_factory is not dataclasses.MISSING:
            filled |= config_to_dict({name: field.default_factory()})
    return filled


def config_differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two configurations, each as ``key: old -> new``."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += config_differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
