"""Sections of reports in other formats than MIMIC-CXR's: the clinical history never ends up in the findings."""

import time

from hypothesis import given
from hypothesis import strategies as st

from medunifier.data.phantom.study import Phantom
from medunifier.data.reports.plain_sections import section_text, split_plain_sections
from medunifier.data.reports.sections import one_line, split_sections

CLEAR, NORMAL, SECRET = "The lungs are clear.", "No acute disease.", "Miller, 65, seen on ward 7"

LEAKS = (  # {f}: findings, {i}: impression, {s}: text that must not be included
    "HISTORY: {s}\n\nFINDINGS: {f}\n\nIMPRESSION: {i}",
    "Clinical History: {s}\nFindings: {f}\nImpression: {i}",
    "history: {s}\nfindings: {f}\nimpression: {i}",
    "FINDINGS: {f}\nIMPRESSION: {i}\nCLINICAL INFORMATION: {s}",
    "HISTORY\n{s}\nFINDINGS\n{f}\nIMPRESSION\n{i}\n",
    "History - {s}\r\nFindings - {f}\r\nConclusion - {i}\r\n",
    "**Indication:** {s}\n\n**Findings:** {f}\n\n**Impression:** {i}",
    "  1. Reason for exam: {s}\n  2. Findings: {f}\n  3. Impression: {i}",
    "REASON FOR THIS EXAMINATION :{s}\nFINDINGS :{f}\nOPINION :{i}",
    "HISTORY OF PRESENT ILLNESS: {s}\nFINDINGS: {f}\nIMPRESSION: {i}",
    "FINDINGS: {f}\nCLINICAL HISTORY AND FINDINGS: {s}\nIMPRESSION: {i}",
    "FINDINGS: {f} HISTORY: {s} IMPRESSION: {i}",
    "Findings: {f} Clinical indication: {s}. Impression: {i}",
    "HISTORY: {s} FINDINGS: {f} IMPRESSION: {i}",
    "FINDINGS: {f}\nIMPRESSION: {i}\nDICTATED BY: {s}",
    "FINDINGS: {f}\nComparison: {s}\nImpression: {i}\nPatient name: {s}",
    "{s}\nFINDINGS: {f}\nTechnique: {s}\nIMPRESSION: {i}\nRecommendation: {s}",
    " FINAL REPORT\n NDICATION: {s}\n \n FINDINGS: {f}\n \n IMPRESSION: {i}\n",
    "HISTORY: {s}\\nFINDINGS: {f}\\nIMPRESSION: {i}",
    "<b>History:</b> {s}<br><b>Findings:</b> {f}<br><b>Impression:</b> {i}",
    "Indication. {s}\nFindings. {f}\nImpression. {i}",
    "INDICATION = {s}\nFINDINGS = {f}\nIMPRESSION = {i}",
    "[Indication] {s}\n[Findings] {f}\n[Impression] {i}",
    "INDICATION\t{s}\nFINDINGS\t{f}\nIMPRESSION\t{i}",
    "INDICATION {s}\nFINDINGS {f}\nIMPRESSION {i}",
    "Indication- {s}\nFindings- {f}\nImpression- {i}",
    "**INDICATION** {s}\n**FINDINGS** {f}\n**IMPRESSION** {i}",
    "Clinical question? {s}\nReport: {f}\nSummary: {i}",
    "Hx: {s}\nRadiographic findings: {f}\nImpression and recommendation: {i}",
)  # fmt: skip


def test_findings_and_impression_do_not_include_other_sections() -> None:
    for form in LEAKS:
        sections = split_plain_sections(form.format(f=CLEAR, i=NORMAL, s=SECRET))
        kept = {name: sections.get(name, "") for name in ("findings", "impression")}
        assert "Miller" not in str(kept) and "ward" not in str(kept), (form, sections)
        assert "clear" in kept["findings"] and "acute" in kept["impression"], (form, sections)


def test_headings_of_organs_and_observations_stay_in_their_section() -> None:
    text = "LUNGS: Clear at 10:30.\nHeart size: normal.\nPneumothorax: none.\nLines and tubes: 2 drains."
    assert split_plain_sections(f"HISTORY: cough\nFINDINGS:\n{text}\nIMPRESSION: ok")["findings"] == text


def test_a_wrapped_word_is_not_a_header() -> None:
    text = "Unchanged from the prior\nexamination.\nAs in the last\nstudy\nthere is no effusion."
    assert split_plain_sections(f"FINDINGS: {text}")["findings"] == text


def test_text_without_headers_is_a_full_report_or_last_paragraph() -> None:
    assert split_plain_sections(CLEAR) == {"full report": CLEAR}
    assert split_plain_sections("INDICATION: cough\n\nClear.\n\nBye.")["last_paragraph"] == "Clear.\n\nBye."


def test_section_text_drops_only_other_known_sections() -> None:
    assert section_text(f"{CLEAR} Note: none.\nHISTORY: {SECRET}", "findings") == f"{CLEAR} Note: none."
    assert section_text(f"HISTORY: {SECRET}\nFINDINGS: {CLEAR}\nIMPRESSION: {NORMAL}", "findings") == CLEAR
    assert section_text(CLEAR, "impression") == CLEAR


def test_both_parsers_agree_on_reports_in_mimics_format() -> None:
    phantom = Phantom(32, 0)
    for number in range(200):
        report = phantom.study(number).report
        plain, mimic = split_plain_sections(report), split_sections(report)
        for name in ("findings", "impression"):
            assert one_line(plain.get(name, "")) == one_line(mimic.get(name, "")), report


@given(st.text(alphabet="Fa: .\n-FINDGShistory", max_size=80))
def test_sections_of_random_text_are_substrings(text: str) -> None:
    for body in split_plain_sections(text).values():
        assert all(line in text for line in body.split("\n"))


def test_adversarial_lines_take_linear_time() -> None:
    start = time.perf_counter()
    for text in (" " * 100_000 + "HISTORY: a", "*" * 100_000 + "x:", "a:" * 20_000, "A " * 50_000 + ":", "-" * 10**5):
        split_plain_sections(text)
    assert time.perf_counter() - start < 20
