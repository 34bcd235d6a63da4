"""docs/data.md has a section and an ingest command for every source."""

import re
import shlex

from medunifier.data.ingest.command import IngestConfig
from medunifier.data.sources import SOURCES
from medunifier.shared.config import parse_config


def test_every_source_has_a_section_and_a_command_that_parses(root):
    page = (root / "docs" / "data.md").read_text(encoding="utf-8")
    headings = {name.lower() for name in re.findall(r"^## ([^:\n]+)", page, re.MULTILINE)}
    assert SOURCES.keys() <= headings
    commands = [line.split("#")[0] for line in page.splitlines() if line.startswith("medunifier ingest")]
    configs = {parse_config(IngestConfig, shlex.split(line)[2:]) for line in commands}
    assert {config.source for config in configs} == {*SOURCES, "NAME"}
