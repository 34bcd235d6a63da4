"""The ASGI application: temporary folder, `/health`, uploads, cleanup; listens on loopback by default."""

import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_CONFIG_BYTES, read_bounded
from medunifier.stage2_unified.app.security.upload_limit import UPLOAD_MIB
from medunifier.stage2_unified.inference.embedding_index import StudyIndex

MAX_SESSIONS = 1000
"""Most recent sessions kept; each takes about 140 KiB, and a client can open any number of them."""

_EXAMPLES = "examples"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a private temporary folder for all files, removed on exit.

    Gradio reads its location from the environment at import: enter this context before importing it.

    Raises:
        UserError: if it cannot be created.
    """
    environment = dict(os.environ)
    try:
        temporary = tempfile.TemporaryDirectory(prefix="medunifier-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(
            f"no temporary folder for uploads can be created: {error.strerror or error}; set TMPDIR to a folder "
            "that can be written"
        ) from None
    with temporary as created:
        tempfile.tempdir = name = os.path.realpath(created)  # the gate serves no path that contains a link
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
            os.environ |= environment


def _clean_up_periodically(folder: Path) -> None:
    from medunifier.stage2_unified.app.security.uploads import KEPT_SECONDS, remove_older

    while folder.is_dir():
        try:
            remove_older(folder, KEPT_SECONDS, {_EXAMPLES})
        except OSError:  # deleted by another process in between
            continue
        finally:
            time.sleep(KEPT_SECONDS / 12)


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 = any free port.

    Raises:
        UserError: if the address is not available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # requests wait while the model is loaded
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name that is no host name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}:{port}: {reason}; choose another --port or --host") from None
    return listening


def training_source(model: Path) -> str:
    """Return the data source that a model folder's card names (`data: source …`); "" if it names none."""
    try:
        card = read_bounded(model / "README.md", MAX_CONFIG_BYTES).decode(errors="replace")
    except OSError:
        return ""
    found = re.search(r"^- data: source `([\w.+-]{1,60})`", card, re.MULTILINE)
    return found[1] if found else ""


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
    max_bytes: int = UPLOAD_MIB * 2**20,
    device: str | None = None,
) -> Any:
    """Return the page as an ASGI application.

    Args:
        model: model folder.
        folder: of :func:`temporary_folder`.
        host: address or name that the server listens on.
        hostnames: additional host names; any other is refused (DNS rebinding).
        index: folder of an index of studies, "" for none.
        phantoms: without an index, number of phantoms to generate for similarity search.
        login: user name and password, or None.
        queue: maximum number of waiting requests; further ones get a queue-full error.
        max_bytes: maximum size of an uploaded file.
        device: device of the model.

    Raises:
        UserError: if there is no model, or the index belongs to another model.
    """
    from medunifier.stage2_unified.generation.likelihood import how_to_make
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

    pipeline = MedUnifierPipeline.from_pretrained(model, device)
    fingerprint = pipeline.fingerprint
    if pipeline.reference is None:
        print(f"images outside the training data are not recognized: {how_to_make(model)}", file=sys.stderr)
    studies = StudyIndex.load(index, fingerprint) if index else None
    import gradio as gr  # takes seconds: imported after the arguments are checked
    from fastapi import FastAPI, HTTPException, Request

    from medunifier.stage2_unified.app.layout import build_page
    from medunifier.stage2_unified.app.phantoms import phantom_index, write_examples
    from medunifier.stage2_unified.app.security.gate import Gate
    from medunifier.stage2_unified.app.security.headers import BrowserPolicy
    from medunifier.stage2_unified.app.security.login import Login
    from medunifier.stage2_unified.app.security.request_limits import RequestLimits
    from medunifier.stage2_unified.app.security.uploads import StoreLimits, Uploads
    from medunifier.stage2_unified.app.service import ModelService, stated_findings
    from medunifier.stage2_unified.app.theme import CSS, THEME

    index_images, source = None, training_source(Path(model))
    if phantoms and studies is None:
        studies, index_images = phantom_index(pipeline, phantoms)
    examples = write_examples(folder / _EXAMPLES, pipeline.tokenizer.image_size)
    learned = stated_findings(example.truth for example in examples) if source == "phantom" else ()
    service = ModelService(pipeline, folder / "generated", studies, index_images, max_bytes, learned)
    gr.set_static_paths(folder / _EXAMPLES)  # a copy in Gradio's folder would be deleted with the uploads
    uploads = Uploads(folder, StoreLimits.of_files(max_bytes))
    page = build_page(service, examples, uploads, source)
    # Gradio checks paths in arguments only after a launch, and mounting does not count as one.
    page.has_launched = True
    # A direct call (api_open) would bypass the queue and its concurrency limit.
    page.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
    page.state_session_capacity = MAX_SESSIONS
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "model": fingerprint,
            "device": str(pipeline.device),
            "studies": len(studies.studies) if studies else 0,
        }

    @app.post("/gradio_api/upload", response_model=None)  # replaces Gradio's, which records no owner
    async def upload(request: Request, upload_id: str | None = None) -> Any:
        cookies = [request.cookies.get(f"access-token-{kind}{gradio_app.cookie_id}") for kind in ("", "unsecure-")]
        if login and not any(cookie in gradio_app.tokens for cookie in cookies):
            raise HTTPException(401, "log in first")
        return await uploads.take(request, upload_id)

    gr.mount_gradio_app(
        app, page, path="/", auth=Login(*login) if login else None, show_error=True, max_file_size=max_bytes,
        ssr_mode=False, theme=THEME, css=CSS, footer_links=["api"], run_history=False, enable_monitoring=False,
        mcp_server=False, pwa=False,
    )  # fmt: skip
    gradio_app = app.routes[-1].app  # type: ignore[attr-defined]  # a Mount's
    # The multipart boundaries and names come on top of the file.
    app.add_middleware(RequestLimits, max_bytes=max_bytes + 2**16, functions=page.fns.keys())
    app.add_middleware(BrowserPolicy)
    app.add_middleware(Gate, folder=folder, host=host, names=hostnames)
    threading.Thread(target=_clean_up_periodically, args=(folder,), daemon=True).start()
    return app
