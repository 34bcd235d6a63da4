"""The outer check of every request: host name, origin, and the list of routes that the page uses."""

import ipaddress
import os
import re
import secrets
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse

from medunifier.stage2_unified.app.security.clients import COOKIE, LOCAL_NAME, address_of, cookie_of, is_loopback
from medunifier.stage2_unified.app.security.login import CLIENT_ADDRESS

Scope = dict[str, Any]

# Gradio mounts many more: a proxy, recordings, an editor of its source, component functions, deep links.
_NAME = r"[A-Za-z0-9_-]{1,64}"
_ROUTES = {
    "GET": re.compile(
        r"/|/(health|config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|logout)/?"
        r"|/(assets|static|svelte)/.+"
        r"|/gradio_api/(info|app_id|login_check|startup-events|upload_progress|queue/(data|status)|theme\.css)/?"
        rf"|/gradio_api/(heartbeat/{_NAME}|call/(v2/)?{_NAME}/{_NAME})/?"
    ),
    "POST": re.compile(
        r"/login/?"
        rf"|/gradio_api/(upload|queue/join|cancel|reset|(run|call|call/v2)/{_NAME})/?"
    ),
}  # fmt: skip
_FILE = "/gradio_api/file="
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+)(?::(\d{1,5}))?")
# Gradio builds addresses of the first two; a proxy in front passes the name on in Host. A server may ignore ranges:
# the files are small, and Gradio raises on ranges that it cannot parse.
_DROPPED = {b"x-forwarded-host", b"x-gradio-server", b"range", b"if-range"}


class Gate:
    """ASGI middleware that refuses requests before Gradio sees them.

    - A host name that is not this server's: 400 (DNS rebinding). Any IP address passes, on a loopback server any
      loopback address: only names can be rebound.
    - A foreign ``Origin`` or ``Sec-Fetch-Site``: 403, whatever the method. Links may open the page itself.
    - A route or method that the page does not use, a file outside ``folder``, a websocket: 404.

    An exception that nothing else handled is answered with 500 and logged in one line.

    Args:
        app: what is protected.
        folder: folder of the files that may be served.
        host: address or name that the server listens on.
        names: further names of this server.
    """

    def __init__(self, app: Any, folder: Path, host: str, names: Collection[str] = ()) -> None:
        self._app, self._folder, self._loopback = app, os.path.realpath(folder), is_loopback(host)
        self._names = {LOCAL_NAME} | {name.lower().rstrip(".") for name in (host, *names)}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            status, reason = refusal
            await PlainTextResponse(reason, status)(scope, receive, send)
            return
        scope["headers"] = [header for header in scope["headers"] if header[0] not in _DROPPED]
        CLIENT_ADDRESS.set(address_of(scope))
        new_client = scope["path"] in ("/", "/config") and not cookie_of(scope)
        started = False

        async def with_cookie(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if new_client:
                    cookie = f"{COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Lax"
                    message["headers"] = [*message.get("headers", ()), (b"set-cookie", cookie.encode())]
            await send(message)

        try:
            await self._app(scope, receive, with_cookie)
        except Exception as error:
            print(f"{scope['method']}: {type(error).__name__}", file=sys.stderr, flush=True)
            if not started:
                await PlainTextResponse("this failed on the server", 500)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason, or None for a request that may pass."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not self._knows(hosts[0]):
            return 400, "this server is not known by that host name: start it with --hostnames NAME"
        for origin in headers.get(b"origin", []):
            if _place(origin.partition("://")[2]) != _place(hosts[0]):
                return 403, "requests of other sites are refused"
        foreign = any(site not in ("same-origin", "none") for site in headers.get(b"sec-fetch-site", []))
        opened = scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
        if foreign and not (opened and headers.get(b"sec-fetch-mode") == ["navigate"]):
            return 403, "requests of other sites are refused"
        return None if self._serves(scope["method"], scope["path"]) else (404, "there is nothing here")

    def _knows(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").lower().rstrip(".")
        try:
            return ipaddress.ip_address(name).is_loopback or not self._loopback
        except ValueError:
            return name in self._names

    def _serves(self, method: str, path: str) -> bool:
        method = "GET" if method == "HEAD" else method
        if method == "GET" and path.startswith(_FILE):
            name = path.removeprefix(_FILE)
            # Gradio fetches an http(s) URL given here. What passes is a file itself, under the one folder.
            return (
                name.startswith(self._folder + os.sep)
                and "\0" not in name
                and os.path.realpath(name) == name
                and os.path.isfile(name)
            )
        return method in _ROUTES and _ROUTES[method].fullmatch(path) is not None


def _place(host: str) -> tuple[str, str] | None:
    """Split host and port; the ports of http and https read as none, None for what is no host."""
    found = _HOST.fullmatch(host)
    if found is None:
        return None
    port = found[2] or ""
    return found[1].lower().rstrip("."), "" if port in ("80", "443") else port
