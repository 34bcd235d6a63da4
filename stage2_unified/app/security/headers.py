"""Security headers: the page loads nothing from other hosts, sends nothing to them, and cannot be framed."""

from typing import Any

# Gradio needs inline scripts and styles and evaluates strings: 'unsafe-inline', 'unsafe-eval'.
# What matters here is the restriction of hosts: radiographs on the page cannot be sent elsewhere.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        b"frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class BrowserPolicy:
    """ASGI middleware that adds the headers to every response."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass the request on and add the headers to its response."""

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)
