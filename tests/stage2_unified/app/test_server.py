"""The HTTP API of the page: every endpoint, invalid requests, limits and cleanup."""

import json
import os
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError
from PIL import Image

from medunifier.data.images.radiograph import read_radiograph
from medunifier.data.images.synthetic import save_synthetic_dicom
from medunifier.data.phantom import Phantom
from medunifier.data.reports.observations import FINDINGS
from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.app.command import has_screen, main
from medunifier.stage2_unified.app.security.uploads import remove_older
from medunifier.stage2_unified.app.server import listening_socket, temporary_folder
from tests.stage2_unified.app.conftest import LOGIN


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, auth=LOGIN, verbose=False)


@pytest.fixture(scope="module")
def dicom_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("uploaded") / "image.dcm"
    save_synthetic_dicom(path, Phantom(64, 3).study(4).images[0], "a phantom", "AP")
    return path


def health(server):
    with urllib.request.urlopen(f"{server.url}/health", timeout=10) as answer:
        return json.load(answer)


def test_health_identifies_the_model(server):
    status = health(server)
    assert status["status"] == "ok" and len(status["model"]) == 64 and status["studies"] == 40


def test_the_documented_endpoints_are_those_of_the_server(root, client):
    documented = set(re.findall(r"[`\"](/[a-z]+)[`\"]", (root / "docs" / "start.md").read_text(encoding="utf-8")))
    served = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert documented - {"/health"} == set(served)


def test_an_image_is_reported_scored_searched_and_matched(client, dicom_file):
    given = handle_file(dicom_file)
    job = client.submit(given, "as the file says", api_name="/report")
    written = job.result(timeout=60)
    assert isinstance(written, str) and len(job.outputs()) > 1, "it is streamed"
    scores = client.predict(given, "AP", "", api_name="/findings")
    assert {"Pleural Effusion", "Cardiomegaly"} <= {row[0] for row in scores["data"]} < set(FINDINGS), "of the index"
    assert all(0 <= row[1] <= 1 and 0 < row[2] < 1 for row in scores["data"])
    assert all(-1 <= row[3] <= 1 and 0 <= row[4] <= 1 for row in scores["data"])
    custom = client.predict(given, "AP", "pacemaker, fracture", api_name="/findings")
    assert [row[0] for row in custom["data"]] == ["fracture", "pacemaker"]
    assert custom["data"][0][1] is not None and custom["data"][1][1] is None, "unknown to the labeler"
    found = client.predict(given, "AP", 3, api_name="/similar")
    assert [row[0] for row in found["data"]] == [1, 2, 3] and found["headers"][2] == "study"
    probability, similarity, answer, weaker = client.predict(given, "AP", "No effusion.", api_name="/match")
    assert 0 <= probability <= 1 and -1 <= similarity <= 1
    assert "Pleural Effusion" in answer and "index" in weaker and "probability" in weaker
    report = "The heart is enlarged. No effusion. No pneumothorax."
    assert "probability" in client.predict(given, "AP", report, api_name="/match")[2]
    _, _, answer, weaker = client.predict(given, "AP", "A fine day.", api_name="/match")
    assert "o known finding" in answer and "index" not in answer and not weaker


def test_generated_images_are_marked_synthetic(client):
    prompt = "The heart is enlarged. No effusion. No pneumothorax."
    text, gallery, scores = client.predict(prompt, [], 2, 7, 1.5, "PA", api_name="/draw")
    assert text == prompt and [row[0] for row in scores["data"]] == [7, 8]
    for item in gallery:
        with Image.open(item["image"]) as image:
            assert image.text["Source"] == "synthetic" and "no patient" in image.text["Comment"]
    again = client.predict(prompt, [], 2, 7, 1.5, "PA", api_name="/draw")[1]
    pixels = [[np.asarray(Image.open(item["image"])) for item in items] for items in (gallery, again)]
    assert np.array_equal(*pixels) and not np.array_equal(*pixels[0])
    text, _, scores = client.predict("", ["Cardiomegaly"], 1, 0, 1, "AP", api_name="/draw")
    assert text == "There is cardiomegaly." and not scores["data"], "the match head does not know single statements"
    text, gallery, scores = client.predict("", [], 1, 0, 1, "AP", api_name="/draw")
    assert text == "" and len(gallery) == 1 and not scores["data"], "without a text there is nothing to match"


def test_a_region_of_codes_is_edited_and_decoded(client, dicom_file):
    grid, before = client.predict(handle_file(dicom_file), "AP", api_name="/tokens")
    _, after = client.predict(2, 2, 3, 3, "one code", 3, api_name="/edit")
    _, same = client.predict(0, 0, 1, 1, "the codes of the other side", 0, api_name="/edit")
    images = [np.asarray(Image.open(path)).astype(int) for path in (before, after)]
    changed = np.abs(images[0] - images[1]).reshape(32, 32, -1).sum(axis=2) > 0
    assert changed[8:20, 8:20].any() and np.asarray(Image.open(grid)).shape[0] >= 64 and same
    with pytest.raises(AppError, match="does not lie within"):
        client.predict(15, 15, 3, 3, "one code", 0, api_name="/edit")
    with pytest.raises(AppError, match="from 0 to 31"):
        client.predict(0, 0, 1, 1, "one code", 32, api_name="/edit")


def test_editing_needs_codes(new_client):
    with pytest.raises(AppError, match="first"):
        new_client().predict(0, 0, 1, 1, "one code", 0, api_name="/edit")


@pytest.fixture
def web(client, server):
    """Plain HTTP with the login's cookies."""
    with httpx.Client(base_url=server.url, cookies=client.cookies, timeout=20) as session:
        yield session


@pytest.mark.parametrize("path", [
    "/etc/passwd", "../../etc/passwd", "http://127.0.0.1:9/image.dcm", "https://example.org/a.dcm", "file:///etc/passwd",
])  # fmt: skip
def test_a_path_or_a_url_instead_of_an_upload_is_refused(web, path):
    given = {"path": path, "meta": {"_type": "gradio.FileData"}}
    started = web.post("/gradio_api/call/show", json={"data": [given, "PA"]})
    if started.status_code == 200:
        response = web.get(f"/gradio_api/call/show/{started.json()['event_id']}").text
        assert "event: error" in response and "complete" not in response and "root:" not in response
    assert web.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "..%2f..%2f..%2fetc%2fpasswd"])
def test_no_other_file_of_the_machine_is_served(web, path):
    assert web.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_oversized_requests_are_refused_before_parsing(client, server, tmp_path):
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(3 * 2**20))
    with pytest.raises(Exception):  # noqa: B017, an error status or a closed connection
        client.predict(handle_file(tmp_path / "large.png"), "PA", api_name="/show")
    request = urllib.request.Request(f"{server.url}/gradio_api/queue/join", data=b"x" * 2**21, method="POST")
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert getattr(refused.value, "code", 413) == 413
    with pytest.raises(AppError, match="at most 5000"):
        client.predict("x" * 6000, [], 1, 0, 1, "PA", api_name="/draw")
    for count, seed, guidance in ((9, 0, 1), (1, -1, 1), (1, 0, 99)):
        with pytest.raises(AppError):
            client.predict("No effusion.", [], count, seed, guidance, "PA", api_name="/draw")
    assert health(server)["status"] == "ok"


def test_an_unknown_function_is_refused_without_a_traceback(web, server):
    logged = len(server.log.read_text())
    for index in (9999, -1):
        body = {"data": [], "fn_index": index, "session_hash": "a"}
        assert 400 <= web.post("/gradio_api/queue/join", json=body).status_code < 500
    assert web.post("/gradio_api/call/nothing", json={"data": []}).status_code >= 400
    assert "Traceback" not in server.log.read_text()[logged:]


def test_an_unknown_host_name_is_refused(server):
    request = urllib.request.Request(f"{server.url}/health", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 400


def test_a_full_queue_is_reported_and_queued_requests_are_answered(server, new_client):
    def request(number):
        try:
            return new_client().predict("No effusion.", [], 2, number, 1, "PA", api_name="/draw")[0]
        except (AppError, QueueError) as error:
            return str(error)

    with ThreadPoolExecutor(14) as pool:  # one running, 8 queued
        results = list(pool.map(request, range(14)))
    assert set(results) <= {"No effusion."} | {text for text in results if "ueue is full" in text}
    assert "No effusion." in results and health(server)["status"] == "ok"


def test_the_page_loads_nothing_from_other_hosts(server):
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        page = answer.read().decode()
    named = set(re.findall(r"""(?:src|href|action)=["'](https?:)?//([^/"']+)""", page))
    named |= set(re.findall(r"""@import\s+(?:url\()?["']?(https?:)?//([^/"')]+)""", page))
    assert not named
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_requests_without_a_login_are_refused(server):
    for path in ("/config", "/gradio_api/info"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}{path}", timeout=10)
        assert refused.value.code == 401
    with pytest.raises(Exception, match="Could not login"):
        Client(server.url, auth=(LOGIN[0], "wrong"), verbose=False)


def test_invalid_start_options_give_an_error(model_folder, server, tmp_path, capsys):
    port = server.url.rsplit(":", 1)[1]
    for options, words in [
        (["--model", tmp_path], "not a medunifier model folder"),
        (["--model", model_folder, "--port", port], "cannot listen"),
        (["--model", model_folder, "--password_file", tmp_path / "none"], "cannot be read"),
        (["--model", model_folder, "--index", tmp_path], "not an index"),
    ]:
        assert run_command(main, ["--port=0", *map(str, options)]) == 1
        assert words in capsys.readouterr().err
    for wrong in (["--port=70000"], ["--phantoms=2", "--index=x"], ["--phantoms=-1"], ["--phantoms=100000"]):
        assert run_command(main, ["--model=x", *wrong]) == 2


def test_a_browser_is_opened_only_with_a_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert not has_screen()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert has_screen()


def test_examples_are_served_from_a_folder_that_is_not_cleaned_up(web):
    gallery = next(c for c in web.get("/config").json()["components"] if c["props"].get("elem_id") == "examples")
    paths = [item["image"]["path"] for item in gallery["props"]["value"]]
    assert len(paths) == 8 and all(path.rsplit("/", 2)[1] == "examples" for path in paths)
    assert web.get(f"/gradio_api/file={paths[0]}").content.startswith(b"\x89PNG")


def test_old_files_are_deleted_and_examples_stay(tmp_path):
    for name in ("hash/image.dcm", "generated/a.png", "examples/phantom.png", "new/image.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        if not name.startswith("new"):
            os.utime(tmp_path / name, (0, 0))
    remove_older(tmp_path, 60, ["examples"])
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "examples/phantom.png", "new/image.dcm",
    ]  # fmt: skip


def test_the_shown_model_input_is_the_image(client, dicom_file):
    shown = np.asarray(Image.open(client.predict(handle_file(dicom_file), "PA", api_name="/show")).convert("L")) / 255
    assert np.abs(shown - read_radiograph(dicom_file, 32)).max() < 0.01


def test_a_socks_proxy_in_the_environment_does_not_prevent_the_start(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    httpx.Client().close()  # as Gradio makes one when it is imported


def test_an_impossible_host_or_temporary_folder_is_one_line(monkeypatch):
    for host in ("a..b", "x" * 70 + ".example", "203.0.113.1"):
        with pytest.raises(UserError, match="--host"):
            listening_socket(host, 0)

    def nowhere(*_, **__):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryDirectory", nowhere)
    with pytest.raises(UserError, match="TMPDIR"), temporary_folder():
        pass
