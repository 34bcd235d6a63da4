"""The page in Chromium: upload, report, type, generate, edit codes; no request leaves this machine.

``MEDUNIFIER_PICTURES=docs/pictures`` before this test's command refreshes the documents' screenshots.
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
# No sandbox, since tests run as root; and a browser that asks nothing of its maker.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 120_000  # milliseconds: two cores may be shared with other tests


@pytest.fixture(scope="module")
def url(request, tmp_path_factory):
    """A server with the shipped model or, without it, an untrained one; its language is none, its page the same."""
    model = SHIPPED if SHIPPED.is_dir() else request.getfixturevalue("model_folder")
    with serving(tmp_path_factory.mktemp("browsed"), model=model, phantoms=24, port=0) as server:
        yield server.url
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, url):
    """``page``, on which everything must come from the server and nothing may fail; ``hosts`` that were asked."""
    page = chromium.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
    page.set_default_timeout(PATIENCE)
    hosts, faults = set(), []
    page.on("request", lambda asked: hosts.add(urlsplit(asked.url).netloc))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(url)
    page.locator("#film").wait_for()
    yield SimpleNamespace(page=page, hosts=hosts)
    page.close()
    assert hosts - {""} == {urlsplit(url).netloc}, "'' is the host of data: and blob:"
    assert not faults


def drop(page, name, content):
    """Drop a file on the page's box, as a person's mouse would."""
    carried = page.evaluate_handle(
        """([name, content]) => {
            const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], name));
            return carried;
        }""",
        [name, base64.b64encode(content).decode()],
    )
    page.dispatch_event("#film button", "drop", {"dataTransfer": carried})


def study_with_effusion():
    """Of the kind of phantom that the shipped model has learned."""
    phantom = Phantom(128, 3, ("cardiomegaly", "effusion", "pneumothorax", "opacity", "nodule"))
    return next(s for s in map(phantom.study, range(200)) if "arge left pleural effusion" in s.report)


def film(tmp_path):
    """Its DICOM file."""
    study = study_with_effusion()
    path = tmp_path / "film.dcm"
    save_synthetic_dicom(path, study.images[0], "a phantom", study.views[0])
    return path.read_bytes()


def pixels(page, selector):
    """Return the image of an element as the browser received it."""
    source = page.locator(f"{selector} img").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("L")).astype(int)


def until(page, expression):
    page.wait_for_function(expression, timeout=PATIENCE)


def keep(page, name, tmp_path):
    """Save a screenshot beside the test's other files, or where the documentation's images are refreshed."""
    folder = Path(os.environ.get("MEDUNIFIER_PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.mouse.move(0, 0)
    page.wait_for_timeout(600)  # what moves has come to rest
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    shot.convert("RGB").quantize(192).save(folder / name, optimize=True)
    assert min(shot.size) > 600 and len(set(shot.convert("L").resize((64, 64)).tobytes())) > 8, "not a blank page"
    assert (folder / name).stat().st_size < 400_000


def test_a_dicom_is_dropped_and_read(opened, tmp_path):
    page = opened.page
    assert page.get_by_text("Research software, not a medical device.").is_visible()
    drop(page, "film.dcm", film(tmp_path))
    until(page, "document.querySelector('#report textarea').value.length > 3")
    until(page, "document.querySelectorAll('#neighbours img').length == 4")
    assert page.locator("#findings .confidence-set").count() >= 4, "those that the phantoms have"
    assert "study" in page.locator("#found").inner_text() and "effusion" in page.locator("#found").inner_text()
    findings = split_sections(study_with_effusion().report)["findings"]
    page.locator("#typed textarea, #typed input").fill(" ".join(findings.split()))
    page.locator("#match").click()
    until(page, "document.querySelector('#matched input').value != ''")
    assert 0 <= float(page.locator("#matched input").input_value()) <= 1
    keep(page, "read.png", tmp_path)


def test_a_phantom_is_chosen_and_its_truth_stands_beside_the_draft(opened):
    page = opened.page
    assert not page.locator("#truth").is_visible()
    page.locator("#examples .thumbnail-item").nth(1).click()
    page.get_by_text("What this phantom shows").wait_for()
    until(page, "document.querySelector('#report textarea').value.length > 3")
    until(page, "document.querySelectorAll('#findings .confidence-set').length >= 4")


def test_a_report_is_typed_and_drawn(opened, tmp_path):
    page = opened.page
    page.get_by_role("tab", name="Draw").click()
    text = "Heart size is normal. There is a large left pleural effusion. No evidence of pneumothorax."
    page.locator("#text textarea").fill(text)
    page.locator("#draw").click()
    until(page, "document.querySelectorAll('#gallery .thumbnail-item img').length == 4")
    captions = page.locator("#gallery .caption-label").all_inner_texts()
    assert len(captions) == 4 and all(re.fullmatch(r"synthetic, seed \d, match [01]\.\d\d", c) for c in captions)
    keep(page, "draw.png", tmp_path)


def test_a_region_of_codes_is_edited(opened, tmp_path):
    page = opened.page
    drop(page, "film.dcm", film(tmp_path))
    until(page, "document.querySelectorAll('#neighbours img').length == 4")
    page.get_by_role("tab", name="Tokens").click()
    page.locator("#tokens").click()
    until(page, "document.querySelector('#before img') !== null")
    assert np.array_equal(pixels(page, "#before"), pixels(page, "#decoded"))
    codes = page.locator("#grid img")
    box = codes.bounding_box()
    codes.click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.6})
    until(page, "document.querySelector('#top input').value != '0'")
    until(page, "document.querySelector('#left input').value != '0'")
    old = page.locator("#decoded img").get_attribute("src")
    page.locator("#code input").fill("7")
    page.locator("#edit").click()
    until(page, f"document.querySelector('#decoded img').src != {old!r}")
    before, after = pixels(page, "#before"), pixels(page, "#decoded")
    change, half = np.abs(after - before), len(before) // 2
    # Norms over the whole picture carry a little of every code everywhere.
    assert change[half:, half:].mean() > change[:half, :half].mean(), "the region lies below the middle"
    keep(page, "tokens.png", tmp_path)


def test_what_is_no_film_is_refused_in_words(opened):
    page = opened.page
    drop(page, "letter.png", b"a letter, not a picture")
    page.locator(".toast-body").get_by_text("not a DICOM file").wait_for()
    assert page.locator("#report textarea").input_value() == ""
