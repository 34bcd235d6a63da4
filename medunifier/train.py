"""``medunifier train stage1|stage2``: train by the name of a preset; starts several processes with Accelerate."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from medunifier.shared.command import announce, interruption
from medunifier.shared.config import CONFIGS, Subcommand, parse_subcommand
from medunifier.shared.errors import UsageError
from medunifier.stage1_tokenizer.config import Stage1Config
from medunifier.stage2_unified.training.config import Stage2Config

LAUNCHER_OPTIONS = (
    "config_file", "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port",
)  # fmt: skip
"""Options of ``accelerate launch`` that are also accepted without ``--`` before them."""

DESCRIPTION = (
    "Train stage1 (the tokenizer) or stage2 (the unified model). --config takes the name of a preset or a file. One "
    "process per GPU is started, or one without a GPU, in bf16 on GPUs that have it unless loop.mixed_precision is "
    "set. Options of accelerate launch: "
    + ", ".join(f"--{name}" for name in LAUNCHER_OPTIONS)
    + "; any other after a lone --."
)


@dataclass(frozen=True)
class _Stage:
    """A stage: its configuration and the module that trains it as a script."""

    config_class: type[Any]
    summary: str
    module: str


STAGES = {
    "stage1": _Stage(Stage1Config, "train the tokenizer (VQ-GAN)", "medunifier.stage1_tokenizer.train"),
    "stage2": _Stage(Stage2Config, "train the unified model", "medunifier.stage2_unified.train"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train in this process, or start the processes that the machine and the options call for.

    Raises:
        UserError: as the trainings do; before any process is started for an invalid configuration.
    """
    arguments, launcher = split_launcher_options(list(sys.argv[1:] if argv is None else argv))
    stage, config = parse_subcommand(
        {name: Subcommand(s.config_class, s.summary, presets=name) for name, s in STAGES.items()},
        arguments,
        prog="medunifier train",
        metavar="STAGE",
        description=DESCRIPTION,
        further_options=[f"--{name}" for name in LAUNCHER_OPTIONS],
    )
    with interruption.handled():
        _train(stage, config, arguments, launcher)


def _train(stage: str, config: Any, arguments: list[str], launcher: list[str]) -> None:
    announce("loading …")
    import torch  # after the configuration: its errors and --help do not wait

    gpus = torch.cuda.device_count()
    if gpus and torch.cuda.is_bf16_supported(including_emulation=False) and not _sets_precision(arguments, stage):
        config = replace(config, loop=replace(config.loop, mixed_precision="bf16"))
        arguments.append("--loop.mixed_precision=bf16")
    options = launcher_options(launcher, gpus)
    if launcher or gpus > 1:
        start_accelerate(options, STAGES[stage].module, [a for a in arguments if a != stage])
    elif stage == "stage1":
        from medunifier.stage1_tokenizer.training.run import train_tokenizer

        train_tokenizer(config)
    else:
        from medunifier.stage2_unified.training.run import train_unified

        train_unified(config)


def split_launcher_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of the training, and those of the launcher: named ones, and all after a lone ``--``."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, launcher = arguments[:at], arguments[at + 1 :]
    training: list[str] = []
    rest = iter(own)
    for argument in rest:
        name, equals, _ = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name.replace("-", "_") in LAUNCHER_OPTIONS:
            launcher += [argument] if equals else [argument, *[value for value in [next(rest, None)] if value]]
        else:
            training.append(argument)
    return training, launcher


def _sets_precision(arguments: list[str], stage: str) -> bool:
    """Return whether the options or the configuration file state the precision."""
    if any(argument.startswith("--loop.mixed_precision") for argument in arguments):
        return True
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name = argument.removeprefix("--config=") if argument.startswith("--config=") else argument
        if before == "--config" or name != argument:
            preset = CONFIGS / stage / f"{name}.yaml"
            path = preset if not os.path.isfile(name) else name
            with open(path, encoding="utf-8") as file:
                return "mixed_precision:" in file.read()
    return False


def launcher_options(launcher: Sequence[str], gpus: int) -> list[str]:
    """Return the options of ``accelerate launch``: those of the user, and defaults for what it would warn of.

    Precision and compilation are the training's own settings, so the launcher's are off.
    """
    given = {
        word.removeprefix("--").partition("=")[0].replace("-", "_") for word in launcher if word.startswith("--")
    }
    options = list(launcher)
    for name, value in (("mixed_precision", "no"), ("dynamo_backend", "no")):
        if name not in given:
            options.append(f"--{name}={value}")
    if "config_file" in given:
        return options
    if "num_processes" not in given:
        options.append(f"--num_processes={max(1, gpus)}")
    if "num_machines" not in given:
        options.append("--num_machines=1")
    if "main_process_port" not in given and "num_machines" not in given:
        options.append("--main_process_port=0")  # any free port: several trainings on a machine
    return options


def start_accelerate(options: list[str], module: str, arguments: list[str]) -> NoReturn:
    """Run ``accelerate launch OPTIONS -m MODULE ARGUMENTS`` in this process and exit with the training's code.

    The training has printed what went wrong: the launcher's own warnings and traceback are not shown.

    Raises:
        UsageError: for options that the launcher refuses.
    """
    import logging

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = launch_command_parser()

    def refuse(message: str) -> NoReturn:
        raise UsageError(f"accelerate launch: {message}")

    parser.error = refuse
    given = parser.parse_args([*options, "-m", module, *arguments])
    if (given.num_processes or 1) > 1 and not (given.config_file or given.use_fsdp or given.use_deepspeed):
        given.multi_gpu = True  # on CPUs too: it is torch's elastic launcher
    logging.disable(logging.CRITICAL)  # of this process: warnings of the launcher
    announce("starting the processes …")
    signal.signal(signal.SIGINT, lambda *_: None)  # a single child has received it from the terminal, and reports it
    signal.signal(signal.SIGTERM, lambda *_: _terminate_children())
    code = 0
    try:
        launch_command(given)
    except SignalException as error:
        code = 128 + error.sigval
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
    except subprocess.CalledProcessError as error:
        code = error.returncode
    except (ValueError, ConnectionError) as error:
        raise UsageError(f"accelerate launch: {error}") from error
    sys.exit(128 - code if code < 0 else code)


def _terminate_children() -> None:
    import psutil

    for child in psutil.Process().children():
        child.terminate()
