"""The research-only notice has one source: package code imports it and does not repeat its wording."""

from medunifier.shared.report_page.notice import RESEARCH_ONLY, research_notice


def test_the_notice_precedes_details_and_is_bold_in_markdown():
    assert research_notice() == RESEARCH_ONLY
    assert research_notice("A.", "B.") == f"{RESEARCH_ONLY} A. B."
    assert research_notice("A.", markdown=True) == f"**{RESEARCH_ONLY}** A."


def test_no_other_file_repeats_the_notice(root):
    packages = ("shared", "data", "stage1_tokenizer", "stage2_unified", "scripts")
    files = [path for package in packages for path in (root / package).rglob("*.py")] + [
        *(root / "medunifier").glob("*.py")
    ]
    assert [path.name for path in files if "a medical device" in path.read_text(encoding="utf-8")] == ["notice.py"]
