"""Run the application in the test process, where its network access and files can be observed."""

import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx

CANARY = "canary-5f3a1c"
"""Content of a file that must not be served."""


@contextmanager
def application(model_folder: Path, **options: object) -> Iterator[SimpleNamespace]:
    """Yield ``app``, ``page`` (the Gradio blocks), ``folder`` and ``client(address)``, each with its own cookies."""
    from starlette.testclient import TestClient

    from medunifier.stage2_unified.app.server import make_app, temporary_folder

    with temporary_folder() as folder:
        app = make_app(str(model_folder), folder, host="127.0.0.1", **options)
        with TestClient(app, base_url="http://localhost") as first:

            def client(address: str = "127.0.0.1") -> TestClient:
                new = TestClient(app, "http://localhost", raise_server_exceptions=False, client=(address, 1))
                new.portal = first.portal  # one event loop, which has the queue
                return new

            yield SimpleNamespace(app=app, page=app.routes[-1].app.get_blocks(), folder=folder, client=client)


@contextmanager
def watched_network(monkeypatch) -> Iterator[list[str]]:
    """Yield the list of name lookups and requests, all of which fail."""
    import gradio.processing_utils
    import safehttpx

    attempts: list[str] = []

    def refuse(*arguments: object, **_: object) -> None:
        attempts.append(str(arguments))
        raise OSError("the test has no network")

    async def refuse_later(*arguments: object, **_: object) -> None:
        refuse(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(safehttpx, "async_validate_url", refuse_later)
        patch.setattr(gradio.processing_utils, "async_ssrf_protected_get", refuse_later)
        patch.setattr(httpx.HTTPTransport, "handle_request", refuse)
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse_later)
        yield attempts


def upload(client, name: str, content: bytes) -> str:
    """Upload one file and return its path on the server."""
    answer = client.post("/gradio_api/upload", files={"files": (name, io.BytesIO(content))})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def file_data(path: str, **more: object) -> dict[str, object]:
    """Gradio's JSON object for a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def call_endpoint(client, name: str, data: list[object]) -> tuple[bool, str]:
    """Call over /call; return whether it succeeded and the whole response."""
    body = json.dumps({"data": data})  # httpx would refuse a lone surrogate
    started = client.post(f"/gradio_api/call/{name}", content=body, headers={"content-type": "application/json"})
    assert started.status_code == 200, started.text
    response = client.get(f"/gradio_api/call/{name}/{started.json()['event_id']}").text
    return "event: complete" in response, response


def call_by_queue(client, index: int, calls: list[list[object]], **more: object) -> list[tuple[bool, str]]:
    """The same for several calls over the queue, by function index."""
    refused, waiting = [], set()
    body = {"fn_index": index, "session_hash": f"s{index}"} | more
    for data in calls:
        started = client.post("/gradio_api/queue/join", json=body | {"data": data})
        if started.status_code == 200:
            waiting.add(started.json()["event_id"])
        else:
            refused.append((False, started.text))
    stream = (
        client.get("/gradio_api/queue/data", params={"session_hash": body["session_hash"]}).text if waiting else ""
    )
    messages = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    completed = [message for message in messages if message.get("msg") == "process_completed"]
    assert {message["event_id"] for message in completed} == waiting
    return refused + [(message["success"], json.dumps(message)) for message in completed]


def call_directly(client, index: int, data: list[object], **more: object) -> tuple[bool, str]:
    """The same without the queue, as the page does for functions that are not queued."""
    answer = client.post(
        "/gradio_api/run/predict", json={"data": data, "fn_index": index, "session_hash": f"r{index}"} | more
    )
    return answer.status_code == 200, answer.text
