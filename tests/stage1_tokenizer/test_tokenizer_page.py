"""docs/tokenizer.md lists the presets that exist."""

import re


def test_preset_table_is_complete(root):
    page = (root / "docs" / "tokenizer.md").read_text(encoding="utf-8")
    presets = {path.stem for path in (root / "configs" / "stage1").glob("*.yaml")}
    assert presets == set(re.findall(r"^\| `((?:cxr|taming|demo|phantom)\w*)` \|", page, re.MULTILINE))
