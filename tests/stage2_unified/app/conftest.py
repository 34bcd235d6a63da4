"""A server of its own process, as a user starts it, with a home and a working folder that must stay empty."""

import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'medunifier[app]'")


LOGIN = ("reader", "s3cret word")


@pytest.fixture(scope="session")
def server(root, model_folder, phantom_shards, tmp_path_factory):
    """A server with an untrained model, an index and a password; ``url``, ``process``, ``log``. Uploads to 2 MiB.

    When it has ended nothing may be left of what it was given.
    """
    from shared.command import run_command
    from stage2_unified.retrieve_command import main

    folder = tmp_path_factory.mktemp("served")
    build = ["--model", str(model_folder), "--data", str(phantom_shards), "--index", str(folder / "index")]
    assert run_command(main, build) == 0
    (folder / "password").write_text(f"{LOGIN[1]}\n")
    for name in ("home", "work", "tmp"):
        (folder / name).mkdir()
    environment = os.environ | {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    options = {
        "model": model_folder, "index": folder / "index", "user": LOGIN[0], "password_file": folder / "password",
        "port": 0, "upload_mib": 2, "queue": 8,
    }  # fmt: skip
    command = [sys.executable, str(root / "medunifier.py"), "serve", *(f"--{k}={v}" for k, v in options.items())]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder / "work", env=environment
        )
    url = next((found[1] for line in process.stdout if (found := re.match(r"(http://\S+)", line))), None)
    assert url, (folder / "log").read_text()
    yield SimpleNamespace(url=url, process=process, log=folder / "log")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    left = [path for name in ("home", "work", "tmp") for path in (folder / name).rglob("*") if path.is_file()]
    # matplotlib, which the trainings' modules bring along, keeps a list of fonts from its first import on.
    assert not [path for path in left if "matplotlib" not in path.parts], left


@pytest.fixture
def new_client(server):
    """``new_client()``: another session with the server."""
    from gradio_client import Client

    return lambda: Client(server.url, auth=LOGIN, verbose=False)
