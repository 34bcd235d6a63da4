"""What a browser is told: load nothing from elsewhere, send nothing elsewhere, let nobody frame the page."""

from typing import Any

# Gradio's page has scripts and styles within it and makes functions of texts: 'unsafe-inline', 'unsafe-eval'.
# The bound that matters here is the host: radiographs that are on the page can be sent nowhere else.
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
    """ASGI middleware: the headers on every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on and add to its answer's head."""

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)
