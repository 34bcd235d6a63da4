"""MIMIC-CXR's section rules, each on a minimal text that could violate it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medunifier.data.reports.sections import labelling_text, one_line, section_name, split_sections, training_text

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old woman with ?pleural effusion  // eval
 
 FINDINGS: 
 
 The lungs are clear. NOTE: nothing else
 of note.
 
 IMPRESSION:
 
 No acute process.
"""


def test_sections_of_a_report_in_mimics_format() -> None:
    sections = split_sections(REPORT)
    assert list(sections) == ["preamble", "examination", "indication", "findings", "impression"]
    assert sections["findings"] == "The lungs are clear. NOTE: nothing else\n of note."
    assert sections["impression"] == "No acute process."
    assert sections["preamble"] == "FINAL REPORT"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x\n IMPRESSION: a", {"preamble", "impression"}),
        ("x\nIMPRESSION: a", {"full report"}),  # no leading space
        ("x\n  IMPRESSION: a", {"preamble", "impression"}),  # the second space belongs to the name
        ("x\n Impression: a", {"full report"}),
        ("x\n WHAT?: a", {"full report"}),
        ("x\n T1 FINDINGS: a", {"full report"}),
        ("x\n IMPRESSION:a", {"full report"}),  # no white space after the colon
        ("FINDINGS: a IMPRESSION: b", {"full report"}),
        (" FINDINGS: a", {"preamble", "findings"}),  # on the first line
        ("FINDINGS: a\n IMPRESSION: b", {"preamble", "findings", "impression"}),  # stripped
        ("  WET READ: a\n FINDINGS: b", {"preamble", "findings"}),  # two spaces
        ("", {"full report"}),
    ],
)
def test_header_detection(text: str, names: set[str]) -> None:
    assert set(split_sections(text)) == names


def test_search_resumes_after_the_next_newline() -> None:
    # The newline after "FINDINGS:" belongs to the header, so the next line cannot be one: as upstream.
    assert split_sections("x\n FINDINGS:\n IMPRESSION: a\n b")["findings"] == "IMPRESSION: a\n b"


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (" IMPRESSON", "impression"),
        ("CONCLUSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("NDICATION", "impression"),
        ("REASON FOR EXAM", "indication"),
        ("CHEST, TWO VIEWS", "findings"),
        ("PORTABLE AP CHEST RADIOGRAPH", "findings"),
        ("CLINICAL HISTORY", "history"),
        ("PRELIMINARY FINDINGS AND HISTORY", "findings"),  # findings comes before history in the search
        ("TECHNIQUE", "technique"),
    ],
)
def test_section_names(header: str, name: str) -> None:
    assert section_name(header) == name


def test_an_empty_title_does_not_replace_the_findings() -> None:
    sections = split_sections("x\n FINDINGS: real\n \n CHEST, PA AND LATERAL:  \n \n TECHNIQUE: y\n")
    assert sections["findings"] == "real"


def test_the_last_of_two_sections_with_one_name_is_kept() -> None:
    assert split_sections("x\n IMPRESSION: first\n IMPRESSION: second")["impression"] == "second"


def test_last_paragraph_without_findings_and_impression() -> None:
    sections = split_sections("x\n INDICATION: cough\n \n Lungs are clear.\n \n Thank you.")
    assert sections["indication"] == "cough"
    assert sections["last_paragraph"] == "Lungs are clear.\n \n Thank you."
    assert labelling_text(sections) == sections["last_paragraph"]


def test_labelling_text_prefers_the_impression() -> None:
    assert labelling_text({"findings": "a", "impression": "b", "comparison": "c"}) == "b"
    assert labelling_text({"findings": "a", "comparison": "c"}) == "a"
    assert labelling_text({"technique": "a"}) == ""


def test_training_text() -> None:
    sections = split_sections(REPORT)
    assert training_text(sections) == "The lungs are clear. NOTE: nothing else of note. No acute process."
    assert training_text(sections, "impression") == "No acute process."
    assert training_text({"impression": "b"}, "findings") == ""
    with pytest.raises(ValueError, match="findings"):
        training_text(sections, "everything")


@given(st.text(alphabet="A B:\n,ac", max_size=80))
def test_sections_of_random_text_are_stripped_substrings(text: str) -> None:
    for body in split_sections(text).values():
        assert body in text
        assert body == body.strip()
    assert "\n" not in one_line(text)
