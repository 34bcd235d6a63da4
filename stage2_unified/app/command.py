"""``medunifier serve``: run the web page and its HTTP API."""

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

from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_CONFIG_BYTES, read_bounded
from medunifier.shared.files.text import decode_text, text_lines
from medunifier.shared.report_page.notice import RESEARCH_ONLY
from medunifier.stage2_unified.app.security.clients import is_loopback
from medunifier.stage2_unified.app.security.upload_limit import UPLOAD_MIB
from medunifier.stage2_unified.app.server import listening_socket, make_app, temporary_folder

MAX_PHANTOMS = 2000
"""Upper bound, because they are generated and embedded before the page opens."""


@dataclass(frozen=True)
class ServeConfig:
    """Serve a web page and an HTTP API (gradio_client) for report and image generation."""

    model: str
    """Model folder (run_dir/model)."""
    index: str = ""
    """Index of studies (`medunifier retrieve --data … --index DIR`) to search for similar ones."""
    phantoms: int = 0
    """Without an index: number of phantoms to generate at startup and search for similar ones."""
    browser: bool = False
    """Open the page in a browser, if this machine has a display."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reachable only from this machine; 0.0.0.0 is reachable from others too."""
    port: int = 7860
    """Port; 0 = any free port."""
    hostnames: str = ""
    """Comma-separated additional host names of the server (behind a proxy: its name). The host name of this machine,
    localhost and IP addresses are always accepted."""
    user: str = "medunifier"
    """User name for the login, if there is a password."""
    password_file: str = ""
    """File whose first line is the password; empty = no login."""
    queue: int = 32
    """Maximum number of waiting requests; further ones get a queue-full error."""
    upload_mib: int = UPLOAD_MIB
    """Maximum upload size in MiB."""
    device: str | None = None
    """Device of the model; default: CUDA if available, else the CPU."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        if self.queue < 1 or self.upload_mib < 1:
            raise ValueError("queue and upload_mib must be at least 1")
        if self.phantoms and self.index:
            raise ValueError("pass index or phantoms, not both")
        if not 0 <= self.phantoms <= MAX_PHANTOMS:
            raise ValueError(f"phantoms must be from 0 to {MAX_PHANTOMS}, got {self.phantoms}")


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted.

    Raises:
        UserError: if there is no model, the port is in use, the password file is empty, or Gradio is not installed.
    """
    config = parse_config(ServeConfig, argv, prog="medunifier serve")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'medunifier[app]'")
    login = (config.user, _password(config.password_file)) if config.password_file else None
    with temporary_folder() as folder, listening_socket(config.host, config.port) as listening:
        # On standard error, since scripts read the address from the first line of the output.
        print("loading the model …", file=sys.stderr, flush=True)
        import uvicorn

        from medunifier.stage2_unified.app.security.connections import BoundedConnection

        app = make_app(
            config.model, folder, host=config.host, hostnames=_hostnames(config), index=config.index,
            phantoms=config.phantoms, login=login, queue=config.queue, max_bytes=config.upload_mib * 2**20,
            device=config.device,
        )  # fmt: skip
        if not is_loopback(config.host) and login is None:
            print(f"{config.host} is reachable from other machines without a password (see --password_file)")
        host = f"[{config.host}]" if ":" in config.host else config.host
        url = f"http://{host}:{listening.getsockname()[1]}"
        print(f"{url}   (Ctrl-C to stop)", flush=True)
        print(RESEARCH_ONLY, flush=True)
        if config.browser and has_screen():
            # webbrowser.open may block; the socket is already listening, so an early request is answered.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        settings = uvicorn.Config(
            app, http=BoundedConnection, ws="none", log_level="warning", access_log=False, timeout_graceful_shutdown=2
        )
        # uvicorn re-raises the signal that stopped it: as an exception, it lets the folder be removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listening])


def _hostnames(config: ServeConfig) -> list[str]:
    names = [name.strip() for name in config.hostnames.split(",") if name.strip()]
    return names if is_loopback(config.host) else [socket.gethostname(), *names]


def has_screen() -> bool:
    """Return whether a browser would open a window; otherwise `webbrowser` starts a text browser in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _password(path: str) -> str:
    try:
        lines = text_lines(decode_text(read_bounded(path, MAX_CONFIG_BYTES)))
    except OSError as error:
        raise UserError(f"the password file {path} cannot be read: {error}") from None
    except ValueError:  # its message quotes a byte of the password
        raise UserError(f"the password file {path} is no text: save it as UTF-8") from None
    if not lines[0].strip():
        raise UserError(f"the password file {path} is empty: its first line is the password")
    return lines[0].strip()
