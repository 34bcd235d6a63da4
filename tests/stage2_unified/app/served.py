"""Start the server in a separate process, as a user does."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def serving(folder: Path, **options: object) -> Iterator[SimpleNamespace]:
    """Start a server with its home, working and temporary folder in ``folder``; yield ``url``, ``process``, ``log``.

    It must leave no file behind when it exits.
    """
    for name in ("home", "work", "tmp"):
        (folder / name).mkdir()
    environment = os.environ | {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    command = [sys.executable, "-m", "medunifier", "serve", *(f"--{k}={v}" for k, v in options.items())]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder / "work", env=environment
        )
    try:
        url = next((found[1] for line in process.stdout if (found := re.match(r"(http://\S+)", line))), None)
        assert url, (folder / "log").read_text()
        yield SimpleNamespace(url=url, process=process, log=folder / "log")
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)  # two shared cores
    assert code == 0
    left = [path for name in ("home", "work", "tmp") for path in (folder / name).rglob("*") if path.is_file()]
    # matplotlib, imported by the training modules, writes a font cache on its first import.
    assert not [path for path in left if "matplotlib" not in path.parts], left
