"""Two hundred hostile uploads, sent as raw requests: refused with a message, and the server keeps running."""

import json
from pathlib import Path

import httpx
import pytest
from gradio_client import Client

from tests.data.dicom_samples import file_bytes, sample_dicom
from tests.stage2_unified.app.conftest import LOGIN
from tests.stage2_unified.app.hostile import SCRIPTS, hostile_uploads

KINDS = ("wrong type", "bomb", "truncated", "path name", "script in a header")


@pytest.fixture(scope="module")
def web(server):
    """Plain HTTP with the login's cookies."""
    cookies = Client(server.url, auth=LOGIN, verbose=False).cookies
    with httpx.Client(base_url=server.url, cookies=cookies, timeout=180) as session:
        yield session


@pytest.fixture(scope="module")
def uploads():
    return hostile_uploads()


def upload(web, name, content):
    """Upload with the name unescaped, except for quotes, which would end it."""
    given = name.replace('"', "%22").encode("utf-8", "surrogatepass")
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="' + given + b'"\r\n\r\n'
    form = head + content + b"\r\n--edge--\r\n"
    return web.post(
        "/gradio_api/upload", content=form, headers={"Content-Type": "multipart/form-data; boundary=edge"}
    )


def shown(web, name, content):
    """Return whether the image was shown, and the response, of the upload itself or of /show."""
    answer = upload(web, name, content)
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, (name, answer.status_code)
        return False, answer.text
    given = {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    started = web.post("/gradio_api/call/show", json={"data": [given, "PA"]})
    if started.status_code != 200:
        assert 400 <= started.status_code < 500, (name, started.status_code)
        return False, started.text
    response = web.get(f"/gradio_api/call/show/{started.json()['event_id']}").text
    return "event: complete" in response, json.loads(response.rsplit("data: ", 1)[1].strip().splitlines()[0])


@pytest.mark.filterwarnings("ignore:.*for VR CS")
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_refused_with_a_message_and_the_server_keeps_running(server, web, uploads, kind):
    logged = len(server.log.read_text())  # of other tests that share the server
    assert set(uploads) == set(KINDS) and len(set(uploads[kind])) == 40
    for name, content in uploads[kind]:
        accepted, response = shown(web, name, content)
        assert not accepted, (name, response)
        words = response["error"] if isinstance(response, dict) else response
        assert isinstance(words, str) and 5 < len(words) < 300, (name, response)
        assert "Traceback" not in words and "defect" not in words, (name, words)
        assert not any(script in words for script in SCRIPTS) and "/tmp" not in words, (name, words)
        assert server.process.poll() is None, name
    assert web.get("/health").json()["status"] == "ok"
    good = sample_dicom()
    good.PatientName = good.StudyDescription = SCRIPTS[0]
    accepted, response = shown(web, "image.dcm", file_bytes(good))
    assert accepted and "script" not in json.dumps(response), "a valid image is still read, without its header"
    # Files left in its home, working or temporary folder are checked when the server exits (served.py).
    assert not any(Path(place, "pwned").exists() for place in ("/etc/cron.d", "/tmp", "/", ".", ".."))
    assert not any(Path(place).exists() for place in ("/tmp/pwned.png", "../pwned.dcm", "pwned.dcm"))
    assert "Traceback" not in server.log.read_text()[logged:]
