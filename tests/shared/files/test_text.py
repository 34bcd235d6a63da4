"""Text files of any encoding are decoded by one rule, and only LF, CRLF and CR end a line."""

import pytest

from medunifier.shared.files.text import decode_text, text_lines
from medunifier.stage2_unified.evaluate.command import read_ids
from medunifier.stage2_unified.evaluate.external.tables import read_reports
from medunifier.stage2_unified.inference.generation_prompts import read_prompts
from medunifier.stage2_unified.inference.report_text import report_of

TEXT = "Débâcle\r\n“clear” – 3 µm"
INNER = "a\u2028b\x85c\x0bd\x0ce\x1cf\x1dg\x1eh"
"""Characters at which `str.splitlines` breaks a line."""


def test_text_is_decoded_by_mark_then_utf8_then_cp1252():
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"):
        assert decode_text(TEXT.encode(encoding)) == TEXT, encoding
    for mark, encoding in ((b"\xfe\xff", "utf-16-be"), (b"\0\0\xfe\xff", "utf-32-be")):
        assert decode_text(mark + TEXT.encode(encoding)) == TEXT, encoding
    assert decode_text(b"") == "" and decode_text("a\ufeffb".encode()) == "ab"


def test_what_is_no_text_is_refused():
    for content in (
        TEXT.encode("utf-16-le"),
        b"a\0",
        "a\ufffd".encode(),
        b"\x81\xe9",
        b"\xff\xfea",
        b"\xff\xfe\0\0ab",
    ):
        with pytest.raises(ValueError):
            decode_text(content)


def test_lines_end_at_line_feeds_and_carriage_returns_only():
    assert text_lines(f"{INNER}\r\nx\ry\n") == [INNER, "x", "y", ""]


def test_no_reader_breaks_a_line_inside_a_value(tmp_path):
    (tmp_path / "p.txt").write_text(f"{INNER}\nsecond\n", encoding="utf-16")
    (tmp_path / "p.csv").write_text(f'findings,impression\n"{INNER}",x\n', encoding="utf-16")
    (tmp_path / "p.jsonl").write_text(f'{{"findings": "{INNER[:5]}"}}\n', encoding="utf-16")
    found = [[prompt.report["findings"] for prompt in read_prompts(tmp_path / f"p.{suffix}", 1, "PA")]
             for suffix in ("txt", "csv", "jsonl")]  # fmt: skip
    assert found == [[INNER, "second"], [INNER], [INNER[:5]]]
    (tmp_path / "ids").write_text(f"{INNER}\nb\n", encoding="utf-16")
    assert read_ids(str(tmp_path / "ids")) == {INNER, "b"}
    (tmp_path / "r.csv").write_text(f'study_id,report\ns,"{INNER}é"\n', encoding="utf-8-sig")
    (report,) = read_reports(str(tmp_path / "r.csv")).reports.values()  # white space is one space there
    assert report.split() == f"{INNER}é".split()


def test_the_indication_of_a_typed_report_is_left_out():
    report = report_of("Indication: rule out pneumothorax\nFindings: Clear.\nImpression: Normal.")
    assert report == {"findings": "Clear.", "impression": "Normal."}
    assert report_of("Other: large effusion.") == {"findings": "Other: large effusion.", "impression": ""}
