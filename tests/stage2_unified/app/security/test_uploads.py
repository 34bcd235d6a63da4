"""The upload store: bounds per client and overall, oldest uploads removed, nothing left of what broke off."""

import asyncio
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from medunifier.stage2_unified.app.security.clients import address_of, owner_of
from medunifier.stage2_unified.app.security.request_limits import RequestLimits
from medunifier.stage2_unified.app.security.uploads import StoreLimits, Uploads

LIMITS = {
    "file_bytes": 4000, "client_bytes": 6000, "client_files": 3, "all_bytes": 20_000, "all_files": 8, "seconds": 60,
}  # fmt: skip


@pytest.fixture
def store(tmp_path):
    """``client(address)``, ``uploads``, ``files()``; bounds as small as they are changed by ``limits``."""

    def build(**changes):
        uploads = Uploads(tmp_path, StoreLimits(**LIMITS | changes))
        app = FastAPI()

        @app.post("/upload", response_model=None)
        async def upload(request: Request):
            return await uploads.take(request)

        app.add_middleware(RequestLimits, max_bytes=5000)
        return SimpleNamespace(
            uploads=uploads,
            client=lambda address: TestClient(app, client=(address, 1), raise_server_exceptions=False),
            files=lambda: [path for path in tmp_path.rglob("*") if path.is_file()],
        )

    return build


def send(client, size=10, field="files", count=1):
    """The answer to a form with files."""
    return client.post("/upload", files=[(field, (f"image-{number}.png", bytes(size))) for number in range(count)])


def test_the_oldest_uploads_of_a_client_are_removed_beyond_its_number_of_files(store):
    made = store()
    one, other = made.client("10.0.0.1"), made.client("10.0.0.2")
    kept = send(other).json()[0]
    paths = [send(one).json()[0] for _ in range(5)]
    assert sorted(map(str, made.files())) == sorted([kept, *paths[2:]])
    owner = owner_of({"headers": [], "client": ("10.0.0.1", 1)})
    assert [made.uploads.owned(path, owner) for path in paths] == [False, False, True, True, True]
    assert not made.uploads.owned(kept, owner)
    assert len(send(one, count=8).json()) == 8 and len(made.files()) == 3 + 1, "in one form as well"


def test_the_oldest_uploads_of_a_client_are_removed_beyond_its_bytes(store):
    made = store()
    client = made.client("10.0.0.1")
    for _ in range(3):
        assert send(client, 2500).status_code == 200
        assert sum(path.stat().st_size for path in made.files()) <= LIMITS["client_bytes"]
    assert made.files()


def test_addresses_of_one_ipv6_network_are_one_client():
    first, second, third = (address_of({"client": (f"2001:db8:0:{n}", 1)}) for n in ("1::1", "1:2:3:4:5", "2::1"))
    assert first == second != third
    assert address_of({"client": ("::ffff:10.0.0.1", 1)}) == "10.0.0.1"


def test_a_full_store_refuses_and_old_uploads_make_room(store, monkeypatch):
    made = store()
    answers = [send(made.client(f"10.0.0.{number}"), 3000).status_code for number in range(8)]
    assert answers[:5] == [200] * 5 and answers[-1] == 507
    later = time.time() + 4000
    monkeypatch.setattr("medunifier.stage2_unified.app.security.uploads.time.time", lambda: later)
    assert send(made.client("10.0.0.99"), 3000).status_code == 200 and len(made.files()) == 1


def test_nothing_is_left_of_what_is_no_upload(store):
    made = store()
    client = made.client("10.0.0.1")
    assert send(client, 2000, field="other").json() == [], "a file in an unknown field"
    assert send(client, 4500).status_code == 413, "more than a file may have"
    assert send(client, 100_000).status_code == 413, "more than a request may have"
    assert client.post("/upload", data={"files": "a text"}, files={"a": ("b.png", b"c")}).status_code == 400
    head = {"content-type": "multipart/form-data; boundary=edge"}
    begun = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc'
    broken = [begun + b"\r\n--edgy", b"--edge\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--edge--", b"\0" * 100]
    for content in broken:
        assert client.post("/upload", content=content, headers=head).status_code < 500
    assert client.post("/upload", json={}).status_code == 400
    assert [path for path in made.files() if path.name.startswith("tmp")] == []


def test_the_largest_file_that_is_taken_has_room():
    for mib in (1, 64, 256, 4096):
        limits = StoreLimits.of_files(mib * 2**20)
        assert limits.file_bytes + 2**16 < limits.client_bytes <= limits.all_bytes // 2


def stalled(uploads, address, length):
    """An upload that declares a length, begins, and then sends nothing more."""
    begun = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc'
    parts = [{"type": "http.request", "body": begun, "more_body": True}]

    async def receive():
        if not parts:
            await asyncio.sleep(3600)
        return parts.pop()

    headers = [(b"content-type", b"multipart/form-data; boundary=edge"), (b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers, "client": (address, 1)}
    return uploads.take(Request(scope, receive))


def test_a_stalled_upload_ends_and_counts_while_it_lasts(store):
    made = store(seconds=0.5)

    async def attack():
        first = [stalled(made.uploads, "10.0.0.1", 2500) for _ in range(4)]
        return await asyncio.gather(*first, stalled(made.uploads, "10.0.0.2", 2500), return_exceptions=True)

    results = [getattr(one, "status_code", one) for one in asyncio.run(asyncio.wait_for(attack(), 15))]
    assert results == [408, 408, 429, 429, 408] and not made.files()
    assert send(made.client("10.0.0.1")).status_code == 200


def test_a_form_that_the_parser_refuses_is_answered_in_words(store):
    made = store()
    for boundary in ("b" * 300, "b" * 4000):
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        answer = made.client("10.0.0.1").post("/upload", content=b"--b", headers=headers)
        assert answer.status_code == 400 and answer.text
    assert not made.files()


def test_a_cookie_that_the_gate_did_not_set_is_not_kept():
    for length, kind in ((32, "cookie"), (65, "address"), (60_000, "address")):
        headers = [(b"cookie", b"medunifier-client=" + b"a" * length)]
        assert owner_of({"headers": headers, "client": ("10.0.0.1", 1)})[0] == kind
