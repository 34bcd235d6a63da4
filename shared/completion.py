"""``medunifier completion bash|zsh``: a script by which the shell completes commands and their options.

The options are those that each command's ``--help`` shows, so the script is made when it is asked for, once, and kept
in a file: a shell that started Python at every key would be slow.
"""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from importlib import import_module

from shared.errors import UsageError

SHELLS = ("bash", "zsh")

_SCRIPT = """\
_medunifier() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{verbs}"
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    case $word in -*) ;; *) words= ;; esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _medunifier medunifier
"""


def main(modules: Mapping[str, str], argv: Sequence[str]) -> None:
    """Print the script for one shell.

    Args:
        modules: command -> module with its ``main``.
        argv: the shell's name.

    Raises:
        UsageError: for another shell.
    """
    if list(argv) in (["-h"], ["--help"]):
        print("usage: medunifier completion bash|zsh\n\nPrint a script by which the shell completes commands.")
        return
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UsageError(
            f"medunifier completion SHELL, with SHELL in {', '.join(SHELLS)}; got {' '.join(argv) or '-'}"
        )
    print(script(argv[0], {verb: options_of(module) for verb, module in modules.items()}), end="")


def options_of(module: str) -> list[str]:
    """The long options that a command's help shows, in its order."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        import_module(module).main(["--help"])
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w.]*", shown.getvalue())))


def script(shell: str, options: Mapping[str, Sequence[str]]) -> str:
    """The script; zsh reads bash's by its own emulation."""
    cases = "\n".join(f'    {verb}) words="{" ".join(names)}" ;;' for verb, names in options.items())
    text = _SCRIPT.format(verbs=" ".join(options), cases=cases)
    return text if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{text}"
