"""Local web server for tests that read from a URL."""

import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[Callable[[Path], tuple[str, Callable[[], None]]]]:
    """Return ``serve(folder)``, which returns the folder's URL and a function that stops the server."""
    servers = []

    def serve(folder: Path) -> tuple[str, Callable[[], None]]:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            servers.remove(server)

        return f"http://127.0.0.1:{server.server_port}", stop

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
