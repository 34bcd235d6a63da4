"""Bounds on what a request may bring, kept before anything is parsed."""

import os
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse

Scope = dict[str, Any]


class _TooLarge(Exception):
    pass


class RequestLimits:
    """ASGI middleware: a bound on every request's body, and on all that is stored of uploads.

    Args:
        app: what is protected.
        folder: where uploads lie.
        most_bytes: of an upload's body; other requests may have ``other_bytes``.
        most_stored: in the folder, altogether.
    """

    def __init__(self, app: Any, folder: Path, most_bytes: int, most_stored: int, other_bytes: int = 2**20) -> None:
        self._app, self._folder = app, folder
        self._most_bytes, self._most_stored, self._other_bytes = most_bytes, most_stored, other_bytes

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 413 or 507."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = scope["path"].rstrip("/").endswith("/upload")
        most = self._most_bytes if upload else self._other_bytes
        taken, answered = 0, False
        if upload and _bytes_in(self._folder) > self._most_stored:
            await PlainTextResponse("too many uploads are kept: try later", 507)(scope, receive, send)
            return

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _TooLarge
            return message

        async def watched(message: Any) -> None:
            nonlocal answered
            answered = True
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if length.isdigit() and int(length) > most:
                raise _TooLarge
            await self._app(scope, counted, watched)
        except _TooLarge:
            if not answered:
                await PlainTextResponse(f"too large: at most {most} bytes", 413)(scope, receive, send)


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:  # deleted between the two calls
                continue
    return total
