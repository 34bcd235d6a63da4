"""The research-only notice has one source: product code imports it and does not repeat its words."""

from medunifier.shared.report_page.notice import RESEARCH_ONLY, research_notice


def test_details_follow_the_notice_which_is_bold_in_markdown():
    assert research_notice() == RESEARCH_ONLY
    assert research_notice("A.", "B.") == f"{RESEARCH_ONLY} A. B."
    assert research_notice("A.", markdown=True) == f"**{RESEARCH_ONLY}** A."


def test_no_other_file_of_the_product_spells_it_out(root):
    packages = ("shared", "data", "stage1_tokenizer", "stage2_unified", "scripts")
    files = [path for package in packages for path in (root / package).rglob("*.py")] + [
        root / "medunifier" / "__main__.py"
    ]
    assert [path.name for path in files if "a medical device" in path.read_text(encoding="utf-8")] == ["notice.py"]
