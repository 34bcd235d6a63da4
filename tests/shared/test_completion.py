"""The shell completes what the commands' own help shows."""

import shutil
import subprocess

import pytest

from shared.completion import main, options_of, script
from shared.errors import UsageError


def completed(code, *words):
    line = " ".join(f"'{word}'" for word in words)
    ask = f'{code}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _medunifier; printf "%s\\n" "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_verbs_and_their_options():
    code = script("bash", {"report": ["--model", "--input", "--out"], "retrieve": ["--index"]})
    assert completed(code, "medunifier", "re") == ["report", "retrieve"]
    assert completed(code, "medunifier", "report", "--") == ["--model", "--input", "--out"]
    assert completed(code, "medunifier", "report", "--model", "x", "--o") == ["--out"]
    assert completed(code, "medunifier", "retrieve", "--model") == []
    assert completed(code, "medunifier", "report", "fi") == [], "files are the shell's own"


def test_options_are_those_of_the_help(capsys):
    options = options_of("data.phantom.command")
    assert {"--out", "--studies", "--seed", "--config", "--help"} <= set(options)
    main({"phantom": "data.phantom.command"}, ["zsh"])
    shown = capsys.readouterr().out
    assert "bashcompinit" in shown.splitlines()[0] and "--studies" in shown
    with pytest.raises(UsageError, match="bash, zsh"):
        main({}, ["fish"])
