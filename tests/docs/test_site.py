"""The site: every page is in the navigation, every link and anchor leads somewhere, it builds without a warning."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.docs.pages import pages

LINK = re.compile(r"\]\((?!https?://)([^)\s]*)\)")


def navigation(entry):
    """Pages of a nav entry, in order."""
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in navigation(part)]


def anchors(text):
    """What a page's headings are called in links."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", name.lower()).strip()) for name in headings}


def test_every_page_is_in_the_navigation_once(root):
    listed = navigation(yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    here = [page.removeprefix("docs/") for page in pages(root) if page != "README.md"]
    assert sorted(listed) == sorted([*here, "index.md"]) and len(set(listed)) == len(listed)


def test_every_internal_link_resolves(root):
    wrong = []
    for page in pages(root):
        text = re.sub(r"```.*?```", "", (root / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in LINK.findall(text):
            path, _, anchor = target.partition("#")
            file = (root / page).parent / path if path else root / page
            if not file.exists():
                wrong.append(f"{page}: {target}")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
                wrong.append(f"{page}: no heading #{anchor} in {file.name}")
    assert not wrong, wrong


def test_the_api_page_documents_the_public_names(root):
    import medunifier

    named = re.findall(r"^::: ([\w.]+)$", (root / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(f"{module}.{name}" for name, module in medunifier._MODULES.items())


def test_links_out_of_docs_are_led_to_pages_of_the_site(root, monkeypatch):
    pytest.importorskip("mkdocs", reason="the site needs its extra: pip install 'medunifier[docs]'")
    monkeypatch.syspath_prepend(str(root / "scripts"))
    from docs_site import rewrite

    text = "[a](../data/records.py) [b](tokenizer.md#evaluation) [c](https://x.org/y) [d](#here) [e](../README.md)"
    assert rewrite(text, "docs", "data.md") == (
        "[a](source/data/records.py.md) [b](tokenizer.md#evaluation) [c](https://x.org/y) [d](#here) [e](index.md)"
    )
    assert rewrite("[a](docs/start.md)", "", "index.md") == "[a](start.md)"
    assert rewrite("[a](../model.md)", "docs/results", "results/speed.md") == "[a](../model.md)"


def test_the_citation_file_names_this_version(root):
    import medunifier

    cited = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == medunifier.__version__ and cited["cff-version"] == "1.2.0"
    assert cited["license"] == "Apache-2.0"
    assert cited["references"]
    text = (root / "docs" / "cite.md").read_text(encoding="utf-8")
    assert all(reference["title"].split(":")[0] in text.replace("{", "").replace("}", "")
               for reference in cited["references"])  # fmt: skip


@pytest.mark.slow
def test_it_builds_without_a_warning(root, tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs its extra: pip install 'medunifier[docs]'")
    pytest.importorskip("mkdocstrings", reason="the site needs its extra: pip install 'medunifier[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=root, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shown = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "encode_indices" in shown and ":class:" not in shown
    assert (tmp_path / "site" / "source" / "stage2_unified" / "model" / "modeling.py" / "index.html").is_file()
    assert json.loads((tmp_path / "site" / "search" / "search_index.json").read_text())["docs"]
