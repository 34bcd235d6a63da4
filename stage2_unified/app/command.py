"""``medunifier serve``: the page on this machine."""

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.report_page.notice import RESEARCH_ONLY
from medunifier.stage2_unified.app.security.clients import is_loopback
from medunifier.stage2_unified.app.server import listening_socket, make_app, own_folder

MOST_PHANTOMS = 2000
"""They are drawn and embedded while somebody waits for the page."""


@dataclass(frozen=True)
class ServeConfig:
    """Open a page that reads and draws radiographs with a model, for people and for gradio_client."""

    model: str
    """Model folder (run_dir/model)."""
    index: str = ""
    """Index of studies (`medunifier retrieve --data … --index DIR`), to show the most similar ones."""
    phantoms: int = 0
    """Without an index: draw so many phantoms at the start and show the most similar of them."""
    browser: bool = False
    """Open the page in a browser, where this machine has one on its screen."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reached from this machine alone; 0.0.0.0 from every other one too."""
    port: int = 7860
    """Port; 0 = any that is free."""
    hostnames: str = ""
    """Further names, with commas, that browsers reach the server by (behind a proxy: its name). The host name of this
    machine, localhost and IP addresses are known without."""
    user: str = "medunifier"
    """Name to log in with, where a password is asked for."""
    password_file: str = ""
    """File whose first line is the password; empty = none is asked for."""
    queue: int = 32
    """Questions that may wait; further ones are told that the queue is full."""
    upload_mib: int = 64
    """Largest file that is taken, in MiB."""
    device: str | None = None
    """Where the model runs; an accelerator if there is one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        if self.queue < 1 or self.upload_mib < 1:
            raise ValueError("queue and upload_mib must be at least 1")
        if self.phantoms and self.index:
            raise ValueError("give index or phantoms, not both")
        if not 0 <= self.phantoms <= MOST_PHANTOMS:
            raise ValueError(f"phantoms must be from 0 to {MOST_PHANTOMS}, got {self.phantoms}")


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until it is interrupted.

    Raises:
        UserError: for no model, a taken port, a password file without a password, or Gradio not installed.
    """
    config = parse_config(ServeConfig, argv, prog="medunifier serve")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'medunifier[app]'")
    login = (config.user, _password(config.password_file)) if config.password_file else None
    with own_folder() as folder, listening_socket(config.host, config.port) as listening:
        import uvicorn

        app = make_app(
            config.model, folder, host=config.host, hostnames=_hostnames(config), index=config.index,
            phantoms=config.phantoms, login=login, queue=config.queue, most_bytes=config.upload_mib * 2**20,
            device=config.device,
        )  # fmt: skip
        if not is_loopback(config.host) and login is None:
            print(f"{config.host} is reached from other machines, and no password is asked for (--password_file)")
        host = f"[{config.host}]" if ":" in config.host else config.host
        url = f"http://{host}:{listening.getsockname()[1]}"
        print(f"{url}   (Ctrl-C ends it)", flush=True)
        print(RESEARCH_ONLY, flush=True)
        if config.browser and has_screen():
            # Some browsers are waited for; the socket listens already, and who comes early is answered.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        # uvicorn raises the signal that ended it once more: an exception lets the folder be removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listening])


def _hostnames(config: ServeConfig) -> list[str]:
    given = [name.strip() for name in config.hostnames.split(",") if name.strip()]
    return given if is_loopback(config.host) else [socket.gethostname(), *given]


def has_screen() -> bool:
    """Whether a browser would open a window: without one `webbrowser` takes over the terminal with a text browser."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _password(path: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the password file {path} cannot be read: {error}") from None
    if not lines or not lines[0].strip():
        raise UserError(f"the password file {path} is empty: its first line is the password")
    return lines[0].strip()
