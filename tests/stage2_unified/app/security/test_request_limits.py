"""A body that is too large is cut where it becomes so, with or without a length."""

import asyncio

import pytest

from medunifier.stage2_unified.app.security.request_limits import RequestLimits


def answer_to(path, chunks, length=None, other_bytes=4):
    """The status that a request gets, and the bytes that reached the application."""
    reached, sent = [], []

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            reached.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    parts = [{"type": "http.request", "body": c, "more_body": i + 1 < len(chunks)} for i, c in enumerate(chunks)]

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"content-length", length)]
    scope = {"type": "http", "path": path, "headers": headers, "method": "POST"}
    limits = RequestLimits(app, max_bytes=10, other_bytes=other_bytes)
    asyncio.run(limits(scope, receive, send))
    return sent[0]["status"], sum(map(len, reached))


@pytest.mark.parametrize(("path", "chunks", "length", "status", "reached"), [
    ("/upload", [b"12345", b"12345"], b"10", 200, 10),
    ("/upload", [b"12345", b"123456"], None, 413, 5),
    ("/upload", [b"1"], b"11", 413, 0),
    ("/upload", [b"12345", b"123456"], b"lies", 413, 5),
    ("/queue/join", [b"1234"], b"4", 200, 4),
    ("/queue/join", [b"12345"], None, 413, 0),
])  # fmt: skip
def test_bodies_are_bounded(path, chunks, length, status, reached):
    assert answer_to(path, chunks, length) == (status, reached)


def test_names_of_sessions_and_events_are_short():
    long = "a" * 65
    for name in ("session_hash", "event_id"):
        for body, status in (
            (f'{{"{name}": "{long}"}}', 422),
            (f'{{"{name}": "a", "{name}": "{long}"}}', 422),
            (f'{{"\\u{ord(name[0]):04x}{name[1:]}": "{long}"}}', 422),
            (f'{{"{name}": ["a"]}}', 422),
            (f'{{"{name}": "a/b"}}', 422),
            (f'{{"{name}": "0f8-a_Z"}}', 200),
            (f'{{"{name}": null, "data": ["{long}"]}}', 200),
            (f"{name}={long}", 200),
        ):
            for content in (body.encode(), body.encode("utf-16")):
                half = len(content) // 2
                chunks = [content[:half], content[half:]]
                assert answer_to("/queue/join", chunks, other_bytes=1000)[0] == status, body
