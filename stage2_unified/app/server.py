"""The server: one temporary folder, loopback unless told, `/health`, and an end that leaves nothing behind."""

import ipaddress
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.errors import UserError
from stage2_unified.study_index import StudyIndex

MOST_STORED = 2**30
"""Bytes of uploads and drawings at a time, beyond which uploads are refused until older ones are deleted."""

KEPT_SECONDS = 3600
"""How long an upload or a drawing is kept at the most, while the server runs."""

_EXAMPLES = "examples"


@contextmanager
def own_folder() -> Iterator[Path]:
    """A private temporary folder that everything is written to, and that goes when the server does.

    Gradio reads its place from the environment when it is imported: enter this before.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="medunifier-", ignore_cleanup_errors=True) as name:
        tempfile.tempdir = name
        os.environ |= {
            "GRADIO_TEMP_DIR": name,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = None
            os.environ.clear()
            os.environ |= before


def remove_older(folder: Path, seconds: float) -> None:
    """Delete what was written into ``folder`` longer ago, but the examples; the folders that become empty, too."""
    limit = time.time() - seconds
    for entry in folder.iterdir():
        if entry.name == _EXAMPLES:
            continue
        files = [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]
        for path in files:
            if path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
        if entry.is_dir() and not any(entry.iterdir()) and entry.stat().st_mtime < limit:
            shutil.rmtree(entry, ignore_errors=True)


def _tidy_for_ever(folder: Path) -> None:
    while folder.is_dir():
        try:
            remove_older(folder, KEPT_SECONDS)
        except OSError:  # deleted by somebody else between two calls
            continue
        finally:
            time.sleep(KEPT_SECONDS / 12)


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 = any that is free.

    Raises:
        UserError: if the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # who comes before the model is loaded waits
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port") from None
    return listening


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_app(
    model: str,
    folder: Path,
    *,
    host: str,
    index: str = "",
    phantoms: int = 0,
    login: tuple[str, str] | None = None,
    queue: int = 32,
    most_bytes: int = 2**26,
    device: str | None = None,
) -> Any:
    """The page as an ASGI application.

    Args:
        model: model folder.
        folder: of :func:`own_folder`.
        host: where it will listen; on loopback other names for this machine are refused (DNS rebinding).
        index: folder of an index of studies, "" for none.
        phantoms: without an index, how many phantoms are drawn to find the most similar among.
        login: name and password, None for neither.
        queue: questions that may wait; further ones are told that the queue is full.
        most_bytes: of an uploaded file.
        device: where the model runs.

    Raises:
        UserError: for no model, or an index of another one.
    """
    from stage2_unified.inference import MedUnifierPipeline

    pipeline = MedUnifierPipeline.from_pretrained(model, device, batch_size=8)
    fingerprint = pipeline.fingerprint
    studies = StudyIndex.load(index, fingerprint) if index else None
    import gradio as gr  # after what a user can get wrong: it takes seconds
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from stage2_unified.app.answers import Answers
    from stage2_unified.app.browser_policy import BrowserPolicy
    from stage2_unified.app.limits import RequestLimits
    from stage2_unified.app.look import CSS, THEME
    from stage2_unified.app.page import build_page
    from stage2_unified.app.phantoms import phantom_index, write_examples

    pictures = None
    if phantoms and studies is None:
        studies, pictures = phantom_index(pipeline, phantoms)
    answers = Answers(pipeline, folder / "drawn", studies, pictures, most_bytes)
    examples = write_examples(folder / _EXAMPLES, pipeline.tokenizer.image_size)
    gr.set_static_paths(folder / _EXAMPLES)  # a copy in Gradio's own folder would be deleted with the uploads
    page = build_page(answers, examples)
    page.queue(max_size=queue, default_concurrency_limit=1)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "model": fingerprint,
            "device": str(pipeline.device),
            "studies": len(studies.studies) if studies else 0,
        }

    gr.mount_gradio_app(
        app, page, path="/", auth=login, show_error=True, max_file_size=most_bytes, ssr_mode=False,
        theme=THEME, css=CSS, footer_links=["api"], run_history=False, enable_monitoring=False, mcp_server=False,
        pwa=False,
    )  # fmt: skip
    # A form's boundaries and names come on top of the file.
    app.add_middleware(RequestLimits, folder=folder, most_bytes=most_bytes + 2**16, most_stored=MOST_STORED)
    app.add_middleware(BrowserPolicy)
    if is_loopback(host):
        # Starlette cuts a name at its first colon: "[" is what it takes for the host of http://[::1]:7860.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "["])
    threading.Thread(target=_tidy_for_ever, args=(folder,), daemon=True).start()
    return app
