"""Slow and idle connections are closed, and no more than the limit are open."""

import contextlib
import socket
import threading
import time

import pytest

pytest.importorskip("gradio")

import uvicorn

from medunifier.stage2_unified.app.security import connections
from medunifier.stage2_unified.app.security.connections import BoundedConnection

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def connect(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.5)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=BoundedConnection, ws="none", log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    with contextlib.ExitStack() as opened:

        def open_connection():
            return opened.enter_context(socket.create_connection(listening.getsockname(), timeout=10))

        yield open_connection
    server.should_exit = True
    thread.join()


def closed_after(connection, sent, more=b""):
    """Seconds until the server closed the connection, to which ``more`` is sent every 0.1 s."""
    begin = time.monotonic()
    with contextlib.suppress(OSError):
        connection.sendall(sent)
        connection.settimeout(0.1)
        while time.monotonic() - begin < 8:
            try:
                if not connection.recv(1000):
                    break
            except TimeoutError:
                connection.sendall(more)
    return time.monotonic() - begin


def test_a_connection_without_a_whole_head_is_closed(connect):
    for sent, more in ((b"", b""), (b"GET / HTTP/1.1\r\nX: ", b"a"), (REQUEST + b"G", b"E")):
        assert closed_after(connect(), sent, more) < 4


def test_a_body_has_more_time_but_not_for_ever(connect):
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
    assert 1 < closed_after(connect(), head, b"a") < 5


def test_a_request_that_arrives_slowly_in_time_is_answered_on_a_connection_that_stays(connect):
    connection = connect()
    for _ in range(2):
        connection.sendall(REQUEST[:9])
        time.sleep(0.2)
        connection.sendall(REQUEST[9:])
        answer = b""
        while not answer.endswith(b"ok"):
            answer += connection.recv(1000)


def test_connections_beyond_the_limit_are_closed_at_once(connect):
    kept = [connect() for _ in range(4)]
    for connection in kept:
        connection.sendall(b"GET")
    time.sleep(0.1)
    begin = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        assert connect().recv(10) == b""
    assert time.monotonic() - begin < 0.4
    kept[0].sendall(REQUEST[3:])
    assert kept[0].recv(1000).startswith(b"HTTP/1.1 200")
