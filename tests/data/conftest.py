"""A web server on the loopback, for what is read from a URL."""

import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[Callable[[Path], tuple[str, Callable[[], None]]]]:
    """``served(folder)`` -> its URL, and a function that ends the service."""
    servers = []

    def serve(folder: Path) -> tuple[str, Callable[[], None]]:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)

        def end() -> None:
            server.shutdown()
            server.server_close()
            servers.remove(server)

        return f"http://127.0.0.1:{server.server_port}", end

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
