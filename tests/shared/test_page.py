"""The page: escaped, self-contained, with its notices, and true in what it marks."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from shared.page import PHANTOM, RESEARCH_ONLY, Figure, Page, mark_differences, png_data_uri

VOID = {"meta", "img", "rect", "polyline"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order, and notes every tag and its attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


HOSTILE = '<script>alert("x")</script> & "quoted"'


def full_page(source="phantom"):
    page = Page(HOSTILE, HOSTILE, source)
    page.section(HOSTILE, HOSTILE)
    page.heading(HOSTILE)
    page.table([HOSTILE, "n"], [[HOSTILE, 1.0], [None, None]], caption=HOSTILE)
    page.metrics({HOSTILE: 0.5, f"{HOSTILE}.baseline": 0.1, "psnr": 31.0}, {HOSTILE: 0.4, "psnr": 40.0}, HOSTILE)
    page.figures([Figure([(HOSTILE, np.zeros((4, 4)))], HOSTILE)])
    page.report_beside_truth(
        HOSTILE,
        "<b>x</b>",
        title=HOSTILE,
        image=np.zeros((4, 4)),
        said=["Edema", HOSTILE],
        true=["Edema", "Fracture"],
    )
    page.curves({HOSTILE: {"training": [(0, 1.0), (5, float("nan")), (10, 0.5)], "chance": [(0, 2.0), (10, 2.0)]}})
    return page.html()


def parsed(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser.seen


def test_nothing_of_a_text_becomes_markup():
    html = full_page()
    tags = {tag for tag, _ in parsed(html)}
    assert "script" not in tags and "<b>x</b>" not in html
    assert html.count("&lt;script&gt;") >= 10


def test_the_page_fetches_nothing():
    html = full_page()
    addresses = [
        value for _, attrs in parsed(html) for name, value in attrs.items() if name in ("src", "href") and value
    ]
    assert addresses and all(a.startswith(("data:image/png;base64,", "#")) for a in addresses)
    assert not re.search(r"@import|url\(", html)


def test_notices_follow_the_source():
    assert RESEARCH_ONLY in full_page("phantom") and PHANTOM in full_page("phantom")
    assert RESEARCH_ONLY in full_page("mimic-cxr") and PHANTOM not in full_page("mimic-cxr")


def test_pictures_come_back_pixel_for_pixel():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = base64.b64decode(png_data_uri(image).split(",")[1])
    assert (np.asarray(Image.open(io.BytesIO(content))) == image).all()
    assert png_data_uri(image / 255.0) == png_data_uri(image)


def test_differences_are_marked_word_by_word():
    truth, written = mark_differences("Heart is large. No effusion.", "heart is normal. No effusion seen")
    assert truth == "Heart is <del>large.</del> No effusion."
    assert written == "heart is <ins>normal.</ins> No effusion <ins>seen</ins>"
    assert mark_differences("", "new words") == ("", "<ins>new words</ins>")


def test_findings_are_hits_misses_and_inventions():
    html = full_page()
    assert "hit: Edema" in html and "missed: Fracture" in html and "invented: &lt;script" in html


def test_a_figure_stands_beside_its_baseline_and_its_verdict():
    page = Page("t")
    page.metrics({"good": 0.9, "good.baseline": 0.1, "bad": 0.2}, {"good": 0.5, "bad": 0.5})
    rows = re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", page.html())
    assert [name for name, _ in rows] == ["good", "bad"]
    assert "0.100" in rows[0][1] and ">yes<" in rows[0][1] and ">no<" in rows[1][1]


def test_an_empty_table_and_an_empty_curve_do_not_fail():
    page = Page("t")
    page.table(["a", "b"], [])
    page.curves({"loss": {"training": []}})
    parsed(page.html())


def test_the_file_is_written(tmp_path):
    Page("title").save(tmp_path / "deep" / "page.html")
    assert "<title>title</title>" in (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
