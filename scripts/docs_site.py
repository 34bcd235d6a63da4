"""Hooks of mkdocs: use the README as the first page and show linked source files.

In the repository, a link such as ``../shared/errors.py`` opens the file. The site has no such folder, so every linked
file gets a page under ``source/``.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?://|#)([^)\s#]+)(#[^)\s]*)?\)")
_ROLE = re.compile(r":(?:class|meth|func|data|mod|attr):(?=<code>|`)")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".md": "markdown", ".sh": "bash"}
_HOME = "index.md"


def _page_of(path: str) -> str:
    """Where the site shows a file of the project, both from its root: docs/x.md -> x.md, x.py -> source/x.py.md."""
    if path == "README.md":
        return _HOME
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def linked_files(markdown: str, place: str) -> list[str]:
    """Files of the project, from its root, that a text in folder ``place`` links to."""
    return [posixpath.normpath(posixpath.join(place, match[1])) for match in LINK.finditer(markdown)]


def rewrite(markdown: str, place: str, page: str) -> str:
    """The same text with its links leading to pages of the site.

    Args:
        markdown: of a page.
        place: folder of its file, from the project's root.
        page: its path in the site's sources.
    """

    def to_page(match: re.Match[str]) -> str:
        target = _page_of(posixpath.normpath(posixpath.join(place, match[1])))
        return f"]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{match[2] or ''})"

    return LINK.sub(to_page, markdown)


def on_files(files: Any, config: Any) -> Any:
    """Add the first page, and a page for each file of the project that some page links to."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    wanted = set(linked_files(readme, ""))
    for file in files.documentation_pages():
        text = Path(file.abs_src_path).read_text(encoding="utf-8")
        wanted.update(linked_files(text, posixpath.join("docs", posixpath.dirname(file.src_uri))))
    files.append(File.generated(config, _HOME, content=rewrite(readme, "", _HOME)))
    for path in sorted(wanted):
        source = ROOT / path
        if path != "README.md" and not path.startswith("docs/") and source.is_file():
            language = _LANGUAGES.get(source.suffix, "text")
            content = f"# {path}\n\n````{language}\n{source.read_text(encoding='utf-8')}````\n"
            files.append(File.generated(config, _page_of(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead a page's links out of ``docs/`` to the pages of those files."""
    uri = page.file.src_uri
    if uri == _HOME or uri.startswith("source/"):
        return markdown
    return rewrite(markdown, posixpath.join("docs", posixpath.dirname(uri)), uri)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name classes as Sphinx reads them; here the name alone is shown."""
    return _ROLE.sub("", html)
