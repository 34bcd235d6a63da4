"""Only the routes that the page uses answer, only to this server's own names and pages; no other file gets out."""

import asyncio
import contextlib
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.stage2_unified.app.inside import CANARY, application, call_directly, file_data, upload, watched_network

pytest.importorskip("gradio")
import uvicorn

from medunifier.stage2_unified.app.command import main
from medunifier.stage2_unified.app.server import MAX_SESSIONS

LOGIN = ("reader", "s3cret word")
EVIL = (
    "http://evil.example",
    "null",
    "http://localhost.evil.example",
    "http://localhost:9999",
    "https://127.0.0.1:1",
)


@pytest.fixture(scope="module")
def served(model_folder):
    with application(model_folder, login=LOGIN) as running:
        yield running


@pytest.fixture
def client(served):
    """A client that has logged in."""
    new = served.client()
    assert new.post("/login", data={"username": LOGIN[0], "password": LOGIN[1]}).status_code == 200
    new.get("/")
    return new


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret.png").write_text(CANARY)
    return str(tmp_path / "secret.png")


def mounted(router):
    """(path, method) of every route, through mounts and included routers."""
    for route in router.routes:
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(route, "path") and getattr(route, "methods", None):
            yield from ((route.path, method) for method in route.methods)
        elif hasattr(inner, "routes"):
            yield from mounted(inner)


def filled(path, value):
    """The path with every parameter replaced."""
    while "{" in path:
        before, _, rest = path.partition("{")
        path = before + quote(value, safe="") + rest.partition("}")[2]  # httpx would resolve ".." before it sends
    return path


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
def test_no_route_serves_a_file_or_fetches_an_address(served, client, secret, monkeypatch, every):
    """Each route with a file, an address and two other values by turns, or with every value."""
    routes = sorted(set(mounted(served.app)))
    assert len(routes) > 60 and ("/gradio_api/proxy={url_path:path}", "GET") in routes
    uploaded = upload(client, "image.png", b"\x89PNG\r\n\x1a\n own")
    values = [
        secret, "/etc/passwd", "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "http://canary.example/a.png",
        "https:/canary.example/a.png", f"{served.folder}/../{secret}", f"{uploaded}/../../../..{secret}", "1",
    ]  # fmt: skip
    with watched_network(monkeypatch) as attempts:
        for number, (path, method) in enumerate(routes):
            if "heartbeat" in path:  # an endless stream that takes a session's name alone
                continue
            chosen = [values[0], values[4]]
            if "{" in path:
                chosen = values if every else [*chosen, *(values[(number + turn) % len(values)] for turn in (1, 5))]
            for value in chosen:
                given = file_data(value)
                query = dict.fromkeys(("url", "path", "file", "deep_link", "session_hash", "upload_id"), value)
                if "upload_progress" in path:
                    query["upload_id"] = "none"
                body = query | {
                    "data": [given], "fn_index": 0, "event_id": value, "component_id": 1, "fn_name": "x",
                    "prompt": value, "code": value, "bucket_id": value,
                }  # fmt: skip
                sent = {"json": body} if method in ("POST", "PUT") else {}
                answer = client.request(method, filled(path, value), params=query, follow_redirects=False, **sent)
                assert CANARY not in answer.text and "root:x" not in answer.text, (path, value)
                assert "canary" not in answer.headers.get("location", ""), path
        assert not attempts


@pytest.mark.parametrize("path", [
    "/gradio_api/proxy=https://a.hf.space/b", "/gradio_api/file=http://canary.example/a.png",
    "/gradio_api/file/{uploaded}",
    "/gradio_api/stream/a/b/1/playlist.m3u8", "/gradio_api/deep_link?session_hash=a", "/gradio_api/dev/reload",
    "/monitoring", "/monitoring/summary", "/gradio_api/custom_component/a/client/b/c", "/gradio_api/token",
    "/gradio_api/runs", "/pwa_icon",
])  # fmt: skip
def test_routes_that_the_page_does_not_use_are_closed(client, path):
    uploaded = upload(client, "image.png", b"\x89PNG\r\n\x1a\n own")
    assert client.get(path.format(uploaded=uploaded)).status_code == 404


@pytest.mark.parametrize("path", [
    "/gradio_api/component_server", "/gradio_api/process_recording", "/gradio_api/vibe-edit", "/gradio_api/stream/a",
    "/gradio_api/api/draw", "/gradio_api/run-history/connect", "/gradio_api/queue/data", "/",
])  # fmt: skip
def test_posts_that_the_page_does_not_use_are_closed(client, path):
    assert client.post(path, json={"data": []}).status_code == 404


def test_files_are_served_from_the_folder_alone(served, client, secret):
    uploaded = upload(client, "image.png", b"\x89PNG\r\n\x1a\n own")
    assert client.get(f"/gradio_api/file={uploaded}").content.endswith(b"own")
    link = served.folder / "link.png"
    link.symlink_to(secret)
    for path in (
        secret,
        link,
        f"{served.folder}/../{secret}",
        served.folder,
        "/etc/passwd",
        "",
        f"/{uploaded}",
        uploaded + "\0",
    ):
        answer = client.get(f"/gradio_api/file={quote(str(path), safe='')}")
        assert answer.status_code in (403, 404) and CANARY not in answer.text, path


def test_ranges_are_ignored(served, client):
    uploaded = upload(client, "image.png", b"\x89PNG\r\n\x1a\n own")
    for value in ("bytes=0-1", "bytes=--1", "bytes=" + "0-," * 2000, "bytes=a-b", "bytes=" + "9" * 5000 + "-"):
        answer = client.get(f"/gradio_api/file={uploaded}", headers={"range": value})
        assert answer.status_code == 200 and answer.content.endswith(b"own"), value


def test_long_names_of_sessions_are_refused(served, client):
    before = len(served.page.state_holder.session_data)
    for path in ("queue/join", "run/predict", "call/show"):
        sent = {"data": [None, "PA"], "fn_index": 0, "session_hash": "a" * 1000}
        assert 400 <= client.post(f"/gradio_api/{path}", json=sent).status_code < 500
    assert client.get(f"/gradio_api/heartbeat/{'a' * 1000}").status_code == 404
    assert len(served.page.state_holder.session_data) == before


def test_events_with_impossible_functions_and_clicks_are_no_defects(served, client, capfd):
    choose, pick = ({f.name: f._id for f in served.page.fns.values()}[name] for name in ("choose", "pick"))
    browser_only = next(f._id for f in served.page.fns.values() if f.fn is None)
    for path in ("queue/join", "run/predict"):
        for number in (10**9, -1, None, "0", 1.5):
            sent = {"data": [], "fn_index": number, "session_hash": "odd"}
            assert 400 <= client.post(f"/gradio_api/{path}", json=sent).status_code < 500, (path, number)
    for index in (None, -1, 99, [0, 0], [1]):
        for number, data in (
            (choose, []),
            (pick, [None, 2, 2]),
            (browser_only, [None]),
        ):
            event = {} if index is None else {"event_data": {"index": index, "value": None}}
            _, answer = call_directly(client, number, data, **event)
            assert "a defect" not in answer, (number, index)
    assert not capfd.readouterr().err


def test_nothing_is_uploaded_without_the_password(served):
    stranger = served.client()
    stranger.get("/")
    assert stranger.post("/gradio_api/upload", files={"files": ("a.png", b"a")}).status_code == 401
    for path in ("/config", "/gradio_api/info"):
        assert stranger.get(path).status_code == 401


def test_other_sites_are_refused(served, client):
    asks = [
        ("POST", "/gradio_api/upload", {"files": {"files": ("a.png", b"a")}}),
        *(("POST", f"/gradio_api/{path}", {"json": {"data": []}}) for path in (
            "queue/join", "call/draw", "call/v2/draw", "run/draw", "cancel", "reset"
        )),
        ("POST", "/login", {"data": {"username": "a", "password": "b"}}),
        ("GET", "/config", {}), ("GET", "/", {}), ("OPTIONS", "/gradio_api/upload", {}),
    ]  # fmt: skip
    for method, path, sent in asks:
        for origin in EVIL:
            headers = {"origin": origin, "access-control-request-method": "POST"}
            answer = client.request(method, path, headers=headers, **sent)
            assert answer.status_code == 403, (path, origin)
            assert "access-control-allow-origin" not in answer.headers
        if path != "/":
            answer = client.request(method, path, headers={"sec-fetch-site": "cross-site"}, **sent)
            assert answer.status_code == 403, path
    same_origin = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    assert client.post("/gradio_api/upload", headers=same_origin, files={"files": ("a.png", b"a")}).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/logout", headers=link, follow_redirects=False).status_code == 403


def status_of(host, listens, names=(), kind="http", path="/health", folder=Path("/nowhere")):
    """What the gate alone answers."""
    from medunifier.stage2_unified.app.security.gate import Gate

    sent = []

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    headers = [(b"host", one.encode()) for one in ([host] if isinstance(host, str) else host)]
    scope = {"type": kind, "method": "GET", "path": path, "headers": headers, "client": ("127.0.0.1", 1)}
    asyncio.run(Gate(inner, folder, listens, names)(scope, None, send))
    return sent[0].get("status", sent[0]["type"])


def test_the_names_of_the_server_are_those_it_is_reached_by():
    for listens in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        for host in (
            "localhost",
            "LOCALHOST:7860",
            "127.0.0.1:7860",
            "[::1]:7860",
            "[::1]",
            "127.0.0.2",
            "localhost.:1",
        ):
            assert status_of(host, listens) == 200, (listens, host)
        for host in ("evil.example", "localhost.evil.example", "10.0.0.1", "0.0.0.0", "[fe80::1]", "", "[::1", "a b"):
            assert status_of(host, listens) == 400, (listens, host)
    for listens in ("0.0.0.0", "::", "10.0.0.1"):
        for host in ("10.0.0.1:7860", "[::]:7860", "[fe80::1]", "localhost", "0.0.0.0:7860", "node17"):
            assert status_of(host, listens, ["node17"]) == 200, (listens, host)
        assert status_of("evil.example", listens, ["node17"]) == 400
    assert status_of("reader.example", "reader.example") == 200
    assert status_of([], "127.0.0.1") == status_of(["localhost", "evil.example"], "127.0.0.1") == 400


def test_the_gate_alone_serves_no_file_by_a_detour(tmp_path, secret):
    folder = tmp_path / "served"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_text("a")
    (folder / "link.png").symlink_to(secret)
    detours = (
        secret,
        f"{folder}/link.png",
        f"{folder}/../secret.png",
        f"{folder}/deep/../a.png",
        folder,
        f"{folder}/b",
    )
    for path, status in [(f"{folder}/a.png", 200), *((path, 404) for path in detours)]:
        assert status_of("localhost", "127.0.0.1", path=f"/gradio_api/file={path}", folder=folder) == status, path


def test_a_websocket_is_closed():
    assert status_of("localhost", "127.0.0.1", kind="websocket") == "websocket.close"


def test_a_name_that_a_proxy_passes_on_is_not_built_into_the_page(client):
    for name in ("x-forwarded-host", "x-gradio-server"):
        assert "evil.example" not in client.get("/config", headers={name: "http://evil.example"}).text


def test_passwords_cannot_be_guessed_quickly(served, client):
    def guess(number):
        attacker = served.client("10.0.0.9")
        return attacker.post("/login", data={"username": LOGIN[0], "password": str(number)}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(guess, range(60)))
    assert statuses.count(400) == 10 and statuses.count(429) == 50
    right = {"username": LOGIN[0], "password": LOGIN[1]}
    assert served.client("10.0.0.9").post("/login", data=right).status_code == 429, (
        "a right guess shows nothing either"
    )
    assert served.client("10.0.0.8").post("/login", data=right).status_code == 200
    assert client.get("/config").status_code == 200, "existing logins stay valid"


def test_the_number_of_sessions_is_bounded(served):
    sessions = served.page.state_holder
    before = list(sessions.session_data)
    sessions.session_data.update({f"old {number}": None for number in range(MAX_SESSIONS - len(before))})
    for number in range(20):
        assert sessions[f"new {number}"] is not None
    assert len(sessions.session_data) == MAX_SESSIONS
    sessions.session_data.clear()


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_server_on_an_ipv6_address_answers_at_the_address_it_prints(model_folder, monkeypatch, capsys):
    run = uvicorn.Server.run

    def ask(server, sockets):
        """Run the server in a thread while the test asks it: another process would import everything again."""
        thread = threading.Thread(target=run, args=(server,), kwargs={"sockets": sockets})
        thread.start()
        try:
            url = capsys.readouterr().out.split()[0]
            assert url.startswith("http://[::1]:")
            with httpx.Client(base_url=url, headers={"origin": url}, timeout=60) as web:
                assert web.get("/health").status_code == 200 and web.get("/").status_code == 200
                uploaded = web.post("/gradio_api/upload", files={"files": ("a.png", b"abc")}).json()[0]
                assert web.get(f"/gradio_api/file={uploaded}").content == b"abc"
        finally:
            server.should_exit = True
            thread.join(60)

    monkeypatch.setattr(uvicorn.Server, "run", ask)
    # It closes the handlers of all loggers, and absl's handler then closes the stream that pytest captures.
    monkeypatch.setattr(uvicorn.Config, "configure_logging", lambda config: None)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        main([f"--model={model_folder}", "--host=::1", "--port=0"])
    finally:
        signal.signal(signal.SIGTERM, handler)
