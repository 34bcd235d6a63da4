"""The server: one temporary folder, loopback unless told, `/health`, and an end that leaves nothing behind."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.inference.embedding_index import StudyIndex

MOST_SESSIONS = 1000
"""Sessions that are remembered, the latest; each takes about 140 KiB, and a client may name as many as it likes."""

_EXAMPLES = "examples"


@contextmanager
def own_folder() -> Iterator[Path]:
    """A private temporary folder that everything is written to, and that goes when the server does.

    Gradio reads its place from the environment when it is imported: enter this before.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="medunifier-", ignore_cleanup_errors=True) as created:
        tempfile.tempdir = name = os.path.realpath(created)  # the gate serves no path with a link in it
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


def _tidy_for_ever(folder: Path) -> None:
    from medunifier.stage2_unified.app.security.uploads import KEPT_SECONDS, remove_older

    while folder.is_dir():
        try:
            remove_older(folder, KEPT_SECONDS, {_EXAMPLES})
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


def make_app(
    model: str,
    folder: Path,
    *,
    host: str,
    hostnames: Collection[str] = (),
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
        host: address or name that it will listen on.
        hostnames: further names that it is reached by; the others are refused (DNS rebinding).
        index: folder of an index of studies, "" for none.
        phantoms: without an index, how many phantoms are drawn to find the most similar among.
        login: name and password, None for neither.
        queue: questions that may wait; further ones are told that the queue is full.
        most_bytes: of an uploaded file.
        device: where the model runs.

    Raises:
        UserError: for no model, or an index of another one.
    """
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

    pipeline = MedUnifierPipeline.from_pretrained(model, device, batch_size=8)
    fingerprint = pipeline.fingerprint
    studies = StudyIndex.load(index, fingerprint) if index else None
    import gradio as gr  # after what a user can get wrong: it takes seconds
    from fastapi import FastAPI, HTTPException, Request

    from medunifier.stage2_unified.app.answers import Answers
    from medunifier.stage2_unified.app.layout import build_page
    from medunifier.stage2_unified.app.phantoms import phantom_index, write_examples
    from medunifier.stage2_unified.app.security.gate import Gate
    from medunifier.stage2_unified.app.security.headers import BrowserPolicy
    from medunifier.stage2_unified.app.security.login import Login
    from medunifier.stage2_unified.app.security.request_limits import RequestLimits
    from medunifier.stage2_unified.app.security.uploads import StoreLimits, Uploads
    from medunifier.stage2_unified.app.theme import CSS, THEME

    pictures = None
    if phantoms and studies is None:
        studies, pictures = phantom_index(pipeline, phantoms)
    answers = Answers(pipeline, folder / "drawn", studies, pictures, most_bytes)
    examples = write_examples(folder / _EXAMPLES, pipeline.tokenizer.image_size)
    gr.set_static_paths(folder / _EXAMPLES)  # a copy in Gradio's own folder would be deleted with the uploads
    uploads = Uploads(folder, StoreLimits.of_files(most_bytes))
    page = build_page(answers, examples, uploads)
    # Gradio checks the paths in arguments only of a page that was launched, and mounting does not count as that.
    page.has_launched = True
    # A direct call (api_open) would pass by the queue and its bound on calls at the same time.
    page.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
    page.state_session_capacity = MOST_SESSIONS
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "model": fingerprint,
            "device": str(pipeline.device),
            "studies": len(studies.studies) if studies else 0,
        }

    @app.post("/gradio_api/upload", response_model=None)  # in the place of Gradio's, which remembers no owner
    async def upload(request: Request, upload_id: str | None = None) -> Any:
        cookies = [request.cookies.get(f"access-token-{kind}{gradio_app.cookie_id}") for kind in ("", "unsecure-")]
        if login and not any(cookie in gradio_app.tokens for cookie in cookies):
            raise HTTPException(401, "log in first")
        return await uploads.take(request, upload_id)

    gr.mount_gradio_app(
        app, page, path="/", auth=Login(*login) if login else None, show_error=True, max_file_size=most_bytes,
        ssr_mode=False, theme=THEME, css=CSS, footer_links=["api"], run_history=False, enable_monitoring=False,
        mcp_server=False, pwa=False,
    )  # fmt: skip
    gradio_app = app.routes[-1].app  # type: ignore[attr-defined]  # a Mount's
    # A form's boundaries and names come on top of the file.
    app.add_middleware(RequestLimits, most_bytes=most_bytes + 2**16)
    app.add_middleware(BrowserPolicy)
    app.add_middleware(Gate, folder=folder, host=host, names=hostnames)
    threading.Thread(target=_tidy_for_ever, args=(folder,), daemon=True).start()
    return app
