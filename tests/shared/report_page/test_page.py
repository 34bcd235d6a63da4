"""HTML pages: texts are escaped, nothing is fetched, notices are present, differences and verdicts are marked."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from medunifier.shared.report_page.notice import RESEARCH_ONLY
from medunifier.shared.report_page.page import PHANTOM, Bar, Figure, Page, mark_differences, png_data_uri

VOID = {"meta", "img", "rect", "polyline"}


class Balanced(HTMLParser):
    """Fail on a tag that is closed out of order, and record every tag and its attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


HOSTILE = '<script>alert("x")</script> & "quoted"'


def full_page(source="phantom"):
    page = Page(HOSTILE, HOSTILE, source)
    page.section(HOSTILE, HOSTILE)
    page.heading(HOSTILE)
    page.table([HOSTILE, "n"], [[HOSTILE, 1.0], [None, None]], caption=HOSTILE)
    page.metrics(
        {HOSTILE: 0.5, f"{HOSTILE}.baseline": 0.1, "psnr": 31.0}, {HOSTILE: 0.4, "psnr": 40.0}, caption=HOSTILE
    )
    page.figures([Figure([(HOSTILE, np.zeros((4, 4)))], HOSTILE)])
    page.definitions({HOSTILE: HOSTILE})
    page.report_comparison(
        HOSTILE,
        "<b>x</b>",
        title=HOSTILE,
        image=np.zeros((4, 4)),
        generated_findings=["Edema", HOSTILE],
        reference_findings=["Edema", "Fracture"],
    )
    curves = {"training": [(0, 1.0), (5, float("nan")), (10, 0.5)], "chance": [(0, 2.0), (10, 2.0)]}
    page.curves({HOSTILE: curves}, x=HOSTILE, y=HOSTILE)
    return page.html()


def parsed(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser.tags


def test_texts_are_escaped():
    html = full_page()
    tags = {tag for tag, _ in parsed(html)}
    assert "script" not in tags and "<b>x</b>" not in html
    assert html.count("&lt;script&gt;") >= 10


def test_the_page_has_no_external_resources():
    html = full_page()
    addresses = [
        value for _, attrs in parsed(html) for name, value in attrs.items() if name in ("src", "href") and value
    ]
    assert addresses and all(a.startswith(("data:image/png;base64,", "#")) for a in addresses)
    assert not re.search(r"@import|url\(", html)


def test_notices_follow_the_source():
    assert RESEARCH_ONLY in full_page("phantom") and PHANTOM in full_page("phantom")
    assert RESEARCH_ONLY in full_page("mimic-cxr") and PHANTOM not in full_page("mimic-cxr")


def test_images_are_embedded_without_loss():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = base64.b64decode(png_data_uri(image).split(",")[1])
    assert (np.asarray(Image.open(io.BytesIO(content))) == image).all()
    assert png_data_uri(image / 255.0) == png_data_uri(image)


def test_differences_are_marked_word_by_word():
    reference, generated = mark_differences("Heart is large. No effusion.", "heart is normal. No effusion seen")
    assert reference == [("", "Heart is"), ("del", "large."), ("", "No effusion.")]
    assert generated == [("", "heart is"), ("ins", "normal."), ("", "No effusion"), ("ins", "seen")]
    assert mark_differences("", "new words") == ([], [("ins", "new words")])


def test_marked_words_are_wrapped_in_del_and_ins():
    page = Page("t")
    page.report_comparison("heart is normal.", "Heart is large.")
    assert "Heart is <del>large.</del></div>" in page.html() and "heart is <ins>normal.</ins></div>" in page.html()


def test_findings_are_found_missed_or_false_positive():
    html = full_page()
    assert "found: Edema" in html and "missed: Fracture" in html and "false positive: &lt;script" in html


def test_metrics_show_baseline_interval_and_verdict():
    page = Page("t")
    metrics = {"good": 0.9, "good.baseline": 0.1, "bad": 0.2}
    page.metrics(metrics, {"good": 0.5, "bad": 0.5}, intervals={"good": [0.8, 0.95], "bad": None})
    rows = re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", page.html(), re.DOTALL)
    assert [name for name, _ in rows] == ["good", "bad"]
    assert "0.100" in rows[0][1] and ">yes<" in rows[0][1] and ">no<" in rows[1][1]
    assert "0.800 to 0.950" in rows[0][1]


def test_a_bar_is_shown_only_for_values_between_0_and_1():
    page = Page("t")
    page.table(["a"], [[Bar(0.25, 0.5)], [Bar(31.0)], [Bar(0.5, -1.0)]])
    assert re.findall(r'class="bar".*?width:([\d.]+)%', page.html()) == ["25.0"]
    assert re.findall(r'<b style="left:([\d.]+)%', page.html()) == ["50.0"]


def test_every_plot_has_a_legend_with_a_key_for_each_curve():
    page = Page("t")
    page.curves({"loss": {"training": [(0, 1.0), (9, 2.0)], "validation": [(9, 1.5), (10, 1.0)]}, "empty": {}})
    html = page.html()
    assert html.count("<svg") == 1
    assert re.findall(r'<i class="(\w+)"></i>(\w+)', html) == [("training", "training"), ("validation", "validation")]
    assert set(re.findall(r"<text[^>]*>([^<]+)", html)) == {"0", "10", "1", "2", "step"}


def test_an_empty_table_and_an_empty_curve_do_not_fail():
    page = Page("t")
    page.table(["a", "b"], [])
    page.curves({"loss": {"training": []}})
    parsed(page.html())


def test_the_file_is_written(tmp_path):
    Page("title").save(tmp_path / "deep" / "page.html")
    assert "<title>title</title>" in (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
