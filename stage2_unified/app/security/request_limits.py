"""The upload limit: the bound on each request's body, applied before anything is parsed, and on session names."""

import json
import re
from collections.abc import Container
from typing import Any

from starlette.responses import PlainTextResponse

Scope = dict[str, Any]


_NAMES = ("session_hash", "event_id")
_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


class _TooLarge(Exception):
    pass


class _BadName(Exception):
    pass


class RequestLimits:
    """ASGI middleware: a bound on every request's body, and short names of sessions and events.

    Gradio keeps a thousand sessions and more queues under the names that clients choose.

    Args:
        app: what is protected.
        max_bytes: of an upload's body; other requests may have ``other_bytes``.
        functions: numbers of the page's functions, one of which /queue/join and /run must name.
    """

    def __init__(
        self, app: Any, max_bytes: int, other_bytes: int = 2**20, functions: Container[int] | None = None
    ) -> None:
        self._app, self._max_bytes, self._other_bytes, self._functions = app, max_bytes, other_bytes, functions

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 413 or, for a name that is refused, 422."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = scope["path"].rstrip("/").endswith("/upload")
        most = self._max_bytes if upload else self._other_bytes
        numbered = re.search("/queue/join|/run/", scope["path"])
        taken, answered, body = 0, False, bytearray()

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _TooLarge
            if not upload and message["type"] == "http.request":
                body.extend(message.get("body", b""))
                if not message.get("more_body") and not _is_valid(bytes(body), self._functions if numbered else None):
                    raise _BadName
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
        except _BadName:
            if not answered:
                reason = (
                    "session_hash and event_id must be up to 64 letters, digits, '_' and '-'; fn_index a function"
                )
                await PlainTextResponse(reason, 422)(scope, receive, send)


def _is_valid(body: bytes, functions: Container[int] | None) -> bool:
    """Check the names in a JSON body, and its function if it must be one of ``functions``.

    Any other body passes: Gradio refuses it, or takes no names from it.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return True
    if not isinstance(content, dict):
        return True
    number, values = content.get("fn_index"), [content.get(name) for name in _NAMES]
    if functions is not None and not (type(number) is int and number in functions):
        return False
    return all(value is None or (isinstance(value, str) and _NAME.fullmatch(value)) for value in values)
