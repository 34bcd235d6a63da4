"""A bound on the body of each request, applied before anything is parsed."""

from typing import Any

from starlette.responses import PlainTextResponse

Scope = dict[str, Any]


class _TooLarge(Exception):
    pass


class RequestLimits:
    """ASGI middleware: a bound on every request's body.

    Args:
        app: what is protected.
        max_bytes: of an upload's body; other requests may have ``other_bytes``.
    """

    def __init__(self, app: Any, max_bytes: int, other_bytes: int = 2**20) -> None:
        self._app, self._max_bytes, self._other_bytes = app, max_bytes, other_bytes

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = scope["path"].rstrip("/").endswith("/upload")
        most = self._max_bytes if upload else self._other_bytes
        taken, answered = 0, False

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
