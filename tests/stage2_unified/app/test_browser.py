"""The page in Chromium: upload, report, match, generate, edit codes; no request leaves this machine.

Set ``MEDUNIFIER_PICTURES=docs/pictures`` to refresh the screenshots of the documentation.
"""

import base64
import io
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from medunifier.data.images.synthetic import save_synthetic_dicom
from medunifier.data.phantom import Phantom
from medunifier.data.reports.sections import split_sections
from tests.stage2_unified.app.served import ROOT, serving

playwright = pytest.importorskip("playwright.sync_api", reason="driven by Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("Chromium is not on this machine: apt-get install chromium", allow_module_level=True)

SHIPPED = ROOT / "models" / "phantom" / "model"
# No sandbox, since tests run as root; no background requests to the vendor.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 120_000  # milliseconds: two cores may be shared with other tests


@pytest.fixture(scope="module")
def url(request, tmp_path_factory):
    """A server with the included model, or an untrained one if it is missing."""
    model = SHIPPED if SHIPPED.is_dir() else request.getfixturevalue("model_folder")
    with serving(tmp_path_factory.mktemp("browsed"), model=model, phantoms=24, port=0) as server:
        yield server.url
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        # One context, so that every page but the first takes the scripts from its cache.
        yield browser.new_context(viewport={"width": 1280, "height": 860}, color_scheme="light")
        browser.close()


@pytest.fixture
def opened(chromium, url):
    """``page``, which may only load from the server and must not log errors; ``hosts`` that were contacted."""
    page = chromium.new_page()
    page.set_default_timeout(PATIENCE)
    hosts, faults = set(), []
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(url)
    page.locator("#radiograph").wait_for()
    yield SimpleNamespace(page=page, hosts=hosts)
    page.close()
    assert hosts - {""} == {urlsplit(url).netloc}, "'' is the host of data: and blob:"
    assert not faults


def drop(page, name, content):
    """Drag and drop a file onto the upload field."""
    transfer = page.evaluate_handle(
        """([name, content]) => {
            const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name));
            return transfer;
        }""",
        [name, base64.b64encode(content).decode()],
    )
    page.dispatch_event("#radiograph button", "drop", {"dataTransfer": transfer})


def study_with_effusion():
    """Return a phantom with findings that the included model was trained on."""
    phantom = Phantom(128, 3, ("cardiomegaly", "effusion", "pneumothorax", "opacity", "nodule"))
    return next(s for s in map(phantom.study, range(200)) if "arge left pleural effusion" in s.report)


def dicom_file(tmp_path):
    """Return the content of its DICOM file."""
    study = study_with_effusion()
    path = tmp_path / "image.dcm"
    save_synthetic_dicom(path, study.images[0], "a phantom", study.views[0])
    return path.read_bytes()


def pixels(page, selector):
    """Return the image of an element as the browser received it."""
    source = page.locator(f"{selector} img").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("L")).astype(int)


def until(page, expression):
    page.wait_for_function(expression, timeout=PATIENCE)


def assert_no_badge(page):
    """Gradio's badge of an error has no words, and its message disappears."""
    page.wait_for_timeout(100)
    assert not page.get_by_text("Error", exact=True).count() and not page.locator(".toast-body").count()


def keep(page, name, tmp_path):
    """Save a screenshot beside the test's other files, or where the documentation's images are refreshed."""
    folder = Path(os.environ.get("MEDUNIFIER_PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.mouse.move(0, 0)
    page.wait_for_timeout(600)  # until animations have ended
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    shot.convert("RGB").quantize(192).save(folder / name, optimize=True)
    assert min(shot.size) > 600 and len(set(shot.convert("L").resize((64, 64)).tobytes())) > 8, "not a blank page"
    assert (folder / name).stat().st_size < 400_000


def test_an_uploaded_dicom_file_is_reported(opened, tmp_path):
    page = opened.page
    assert page.get_by_text("Research software, not a medical device.").is_visible()
    drop(page, "image.dcm", dicom_file(tmp_path))
    until(page, "document.querySelector('#report textarea').value.length > 3")
    until(page, "document.querySelectorAll('#neighbours img').length == 4")
    assert page.locator("#findings .bar").count() >= 4, "the findings of the phantoms"
    assert "study" in page.locator("#found").inner_text() and "effusion" in page.locator("#found").inner_text()
    findings = split_sections(study_with_effusion().report)["findings"]
    page.locator("#typed textarea, #typed input").fill(" ".join(findings.split()))
    page.locator("#match").click()
    until(page, "document.querySelector('#matched').innerText.includes('probability')")
    assert page.locator("#found .study").count() == 4, "as many studies as pictures"
    assert not page.locator("#prompted").is_visible(), "the weaker scores are folded"
    page.get_by_text("scores by prompts").click()
    page.locator("#prompted .virtual-row").first.wait_for()
    page.get_by_text("scores by prompts").click()
    keep(page, "read.png", tmp_path)


def test_an_example_shows_its_ground_truth_next_to_the_report(opened):
    page = opened.page
    assert not page.locator("#truth").is_visible()
    page.locator("#examples .thumbnail-item").nth(1).click()
    page.get_by_text("Ground-truth report of this phantom").wait_for()
    until(page, "document.querySelector('#report textarea').value.length > 3")
    until(page, "document.querySelectorAll('#findings .bar').length >= 4")
    page.get_by_text("scores by prompts").click()
    page.locator("#labels").locator("textarea, input").fill(", ".join(map(str, range(60))))
    page.locator("#score").click()
    page.locator("#score-status").get_by_text("at most").wait_for()
    assert not page.locator("#findings .bar").count(), "of the request before"
    assert_no_badge(page)


def test_radiographs_are_generated_from_a_report(opened, tmp_path):
    page = opened.page
    page.get_by_role("tab", name="Generate").click()
    if SHIPPED.is_dir():
        assert "trained on phantoms" in page.locator("#notice").inner_text()
        offered = page.locator("input[type=checkbox]").count()
        assert offered == 5 and not page.get_by_text("Support Devices").count(), "the findings of its training data"
    page.locator("#generate").click()
    until(page, "document.querySelector('#generate-status').innerText.includes('Generating')")
    until(page, "document.querySelectorAll('#gallery .thumbnail-item img').length == 4")
    until(page, "document.querySelector('#generate-status').innerText.trim() == ''")
    assert not page.locator("#scores").is_visible(), "without a report nothing is matched"
    assert "o text" in page.locator("#prompt").locator("textarea, input").input_value()
    text = "Heart size is normal. There is a large left pleural effusion. No evidence of pneumothorax."
    page.locator("#text textarea").fill(text)
    page.locator("#generate").click()
    page.locator("#scores .virtual-row").first.wait_for()
    captions = page.locator("#gallery .caption-label").all_inner_texts()
    assert len(captions) == 4 and all(
        re.fullmatch(r"synthetic, seed \d, match ([01]\.\d{3}|< 0\.001)", c) for c in captions
    )
    keep(page, "draw.png", tmp_path)


def test_a_region_of_codes_is_edited(opened, tmp_path):
    page = opened.page
    drop(page, "image.dcm", dicom_file(tmp_path))
    until(page, "document.querySelectorAll('#neighbours img').length == 4")
    page.get_by_role("tab", name="Codes").click()
    page.locator("#edit").click()
    page.locator("#edit-status").get_by_text("codes of a radiograph first").wait_for()
    page.locator("#tokens").click()
    until(page, "document.querySelector('#before img') !== null")
    until(page, "document.querySelector('#edit-status').innerText.trim() == ''")
    assert np.array_equal(pixels(page, "#before"), pixels(page, "#decoded"))
    codes = page.locator("#grid img")
    box = codes.bounding_box()
    codes.click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.6})
    until(page, "document.querySelector('#top input').value != '0'")
    until(page, "document.querySelector('#left input').value != '0'")
    old = page.locator("#decoded img").get_attribute("src")
    page.locator("#code input").fill("")
    page.locator("#edit").click()
    page.locator("#edit-status").get_by_text("enter a code from 0").wait_for()
    assert_no_badge(page)
    page.locator("#code input").fill("7")
    page.locator("#edit").click()
    until(page, f"document.querySelector('#decoded img').src != {old!r}")
    before, after = pixels(page, "#before"), pixels(page, "#decoded")
    change, half = np.abs(after - before), len(before) // 2
    # Norms over the whole picture carry a little of every code everywhere.
    assert change[half:, half:].mean() > change[:half, :half].mean(), "the region is below the middle"
    keep(page, "tokens.png", tmp_path)


def test_a_statement_is_scored_by_sampled_reports_and_never_reads_0(opened, tmp_path):
    page = opened.page
    assert page.locator("#matched").inner_text().strip() == "", "nothing is shown before use"
    drop(page, "image.dcm", dicom_file(tmp_path))
    until(page, "document.querySelector('#report textarea').value.length > 3")
    page.locator("#typed textarea, #typed input").fill("Large left pleural effusion.")
    page.locator("#match").click()
    until(page, "document.querySelector('#matched').innerText.includes('Pleural Effusion')")
    if SHIPPED.is_dir():
        percent = re.search(r"(\d+)\s?%", page.locator("#matched").inner_text())
        assert percent, page.locator("#matched").inner_text()
        assert int(percent[1]) > 80, "the included model reports this effusion"
    assert not page.locator("#weaker").is_visible()
    page.get_by_text("Weaker scores of this text").click()
    page.locator("#weaker").get_by_text("Cosine").wait_for()
    assert not page.locator("#agreeing img").count(), "images are generated for it: only on request"
    page.locator("#locate").click()
    page.locator("#agreeing img").wait_for()
    page.locator("#typed textarea, #typed input").fill("")
    until(page, "document.querySelector('#matched').innerText.trim() == ''")  # of the text before
    assert not page.locator("#agreeing img").count() and not page.locator("#weaker").inner_text().strip()
    page.locator("#match").click()
    until(page, "document.querySelector('#matched').innerText.includes('enter a text')")
    page.get_by_text("scores by prompts").click()
    page.locator("#score").click()
    until(page, "document.querySelector('#matched').innerText.trim() == ''")  # an error, before a success
    assert page.locator("#findings .bar").count()
    assert_no_badge(page)


def test_progress_is_shown_before_the_server_answers(opened, tmp_path):
    page, held, released = opened.page, [], []

    def hold(request):
        request.continue_() if released else held.append(request)

    page.route(re.compile(r"/gradio_api/(queue/join|run/)"), hold)
    with page.expect_response(re.compile("/gradio_api/upload")):
        drop(page, "image.dcm", dicom_file(tmp_path))
    page.locator("#status").get_by_text("Reading the image").wait_for(timeout=PATIENCE)
    assert held, "the server has not answered"
    released.append(True)
    for request in held:
        request.continue_()
    until(page, "document.querySelectorAll('#neighbours img').length == 4")
    until(page, "document.querySelector('#status').innerText.trim() == ''")


def test_a_phone_needs_no_sideways_scrolling(opened, tmp_path):
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    drop(page, "image.dcm", dicom_file(tmp_path))
    until(page, "document.querySelectorAll('#neighbours img').length == 4")
    page.locator("#status").get_by_text("similar").wait_for(state="hidden")
    studies = page.locator("#found .study").all()
    assert len(studies) == 4 and all(study.get_by_text("similarity").is_visible() for study in studies)
    assert all("Findings:" in study.inner_text() and "study" in study.inner_text() for study in studies)
    bottoms = [page.locator(at).last.bounding_box() for at in ("#examples .thumbnail-item", "#examples")]
    assert bottoms[0]["y"] + bottoms[0]["height"] <= bottoms[1]["y"] + bottoms[1]["height"] + 1, (
        "no example is cut off"
    )
    for tab in ("Report", "Generate", "Codes"):
        page.get_by_role("tab", name=tab).click()
        beyond = """() => [document.documentElement.scrollWidth, ...[...document.querySelectorAll(
            '.contain :is(img, input, textarea, button, th, .virtual-row > *, .study *)'
        )].map(one => one.getBoundingClientRect()).filter(box => box.height).map(box => box.right)]"""
        assert max(page.evaluate(beyond)) <= 391, tab


def test_errors_stay_readable_beside_the_control(opened):
    page = opened.page
    for _ in range(2):
        page.locator("#read").click()
        page.locator("#status").get_by_text("upload a radiograph first").wait_for()
    drop(page, "letter.png", b"a letter, not a picture")
    page.locator("#status").get_by_text("not a DICOM file").wait_for()
    assert page.locator("#report textarea").input_value() == ""
    assert_no_badge(page)
    page.get_by_role("tab", name="Generate").click()
    page.locator("#text textarea").fill("x" * 6000)
    page.locator("#generate").click()
    page.locator("#generate-status").get_by_text("characters").wait_for()
    page.get_by_role("tab", name="Codes").click()
    page.locator("#edit").click()
    page.locator("#edit-status").get_by_text("codes of a radiograph first").wait_for()
    page.locator("#tokens").click()
    page.locator("#tokens-status").get_by_text("not a DICOM file").wait_for()
    assert_no_badge(page)
