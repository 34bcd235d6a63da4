"""A server with an untrained model, an index and a password, for all tests over HTTP."""

import pytest

from tests.stage2_unified.app.served import serving

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'medunifier[app]'")


LOGIN = ("reader", "s3cret word")


@pytest.fixture(scope="session")
def server(model_folder, phantom_shards, tmp_path_factory):
    """``url``, ``process``, ``log``. Uploads to 2 MiB, a queue of 8."""
    from medunifier.shared.command import run_command
    from medunifier.stage2_unified.cli.retrieve import main

    folder = tmp_path_factory.mktemp("served")
    index, password = folder / "index", folder / "password"
    build = ["--model", str(model_folder), "--data", str(phantom_shards), "--index", str(index)]
    assert run_command(main, build) == 0
    password.write_text(f"{LOGIN[1]}\n")
    login = {"user": LOGIN[0], "password_file": password}
    with serving(folder, model=model_folder, index=index, port=0, upload_mib=2, queue=8, **login) as running:
        yield running


@pytest.fixture
def new_client(server):
    """Return a function that opens another session."""
    from gradio_client import Client

    return lambda: Client(server.url, auth=LOGIN, verbose=False)
