"""Pattern-based redaction replaces identifiers and keeps similar numbers and words."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunifier.data.ingest.check import try_images
from medunifier.data.ingest.command import IngestConfig
from medunifier.data.reports.redaction import BUILT_IN, patterns, redact
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from tests.data.dicom_samples import sample_dicom
from tests.data.ingested import ingest_csv
from tests.data.reports.redaction_lists import ORDINARY, PLANTED

GONE = [
    ("dates", "compared to 3/14/2019.", "compared to ___."),
    ("dates", "Compared to 2019-03-14 and 14.03.19.", "Compared to ___ and ___."),
    ("dates", "film of March 14, 2019, unchanged", "film of ___, unchanged"),
    ("dates", "since 14 Mar 2019 and from the 2nd of May", "since ___ and from the ___"),
    ("dates", "CT of February 2018", "CT of ___"),
    ("dates", "seen on 3/14 as well", "seen on ___ as well"),
    ("times", "discussed at 14:35 and at 2:35 p.m. and at 3 PM", "discussed at ___ and at ___ and at ___"),
    ("phones", "call (617) 555-0123 or 617-555-0123", "call ___ or ___"),
    ("phones", "pager 31415, phone: +49 30 1234567", "pager ___, phone: ___"),
    ("names", "Discussed with Dr. Jane O'Hara by phone.", "Discussed with Dr. ___ by phone."),
    ("names", "DR SMITH was told", "DR ___ was told"),
    ("names", "Read by John Q. Public, M.D. today", "Read by ___, M.D. today"),
    ("contacts", "Mail a.b@c.example.org or see https://d.org/x?y=1.", "Mail ___ or see ___."),
    ("places", "From Mercy Medical Center to 12 Oak Street.", "From ___ to ___."),
    ("numbers", "MRN: 12-34567, accession AB9917, exam 20394817", "MRN: ___, accession ___, exam ___"),
]


@pytest.mark.parametrize(("name", "text", "expected"), GONE)
def test_each_pattern_redacts_its_identifiers(name: str, text: str, expected: str) -> None:
    assert redact(text, patterns(name, ""))[0] == expected
    assert redact(expected, patterns(name, "")) == (expected, 0)


def test_all_patterns_keep_ordinary_sentences() -> None:
    expressions = patterns("all", "")
    for text in ORDINARY:
        assert redact(text, expressions) == (text, 0)


def test_all_patterns_remove_planted_identifiers() -> None:
    expressions = patterns("all", "")
    for planted in PLANTED:
        words = {word for part in re.findall("«(.*?)»", planted) for word in re.findall(r"\w{2,}", part)} - {"of"}
        left = redact(re.sub("[«»]", "", planted), expressions)[0]
        assert not words & set(re.findall(r"\w+", left)), left


def test_every_built_in_pattern_is_tested() -> None:
    assert {name for name, *_ in GONE} == set(BUILT_IN)


def test_no_pattern_backtracks_catastrophically() -> None:
    """Long near-matches: exponential or cubic backtracking would take minutes and be interrupted."""

    def interrupt(*_: object) -> None:
        raise TimeoutError("a pattern backtracks: 60 seconds for 10,000 characters")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(60)
    try:
        for text in (
            "1-" * 5000,
            "A" * 10_000,
            "Dr. " * 2500,
            "(123) " * 2000,
            "9" * 10_000,
            "A B. " * 2000,
            "Ab " * 3000,
            "a." * 5000,
            "1 Ab " * 2000,
            "signed " * 1500,
        ):
            redact(text, patterns("all", ""))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_patterns_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "patterns.txt"
    path.write_text("# names of our ward\n\n(?i)north wing\nroom (\\d+)\n")
    assert redact("North Wing, room 12", patterns("", str(path))) == ("___, room ___", 2)
    path.write_text("fine\n(\n")
    with pytest.raises(UserError, match="line 2"):
        patterns("", str(path))
    path.write_text("x*\n")
    with pytest.raises(UserError, match="line 1"):
        patterns("", str(path))
    with pytest.raises(UserError, match="cannot be read"):
        patterns("", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="date.*dates"):
        patterns("date", "")


REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 COMPARISON:  3/14/2019

 FINDINGS:

 Compared to March
 14, 2019 there is a new right pleural effusion. No pneumothorax. North Wing.

 IMPRESSION:

 Pleural effusion, discussed with Dr. Jane Roe at 14:35, phone 617-555-0123.
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    pixels = np.arange(40 * 32, dtype=np.uint16).astype(np.uint8).reshape(40, 32)
    Image.fromarray(pixels).save(tree / "a.png")
    (tree / "manifest.csv").write_text('image,text\na.png,"' + REPORT + '"\n')
    (tmp_path / "own.txt").write_text("North Wing\n")
    return tree


def test_redaction_does_not_change_sections_or_labels(tree: Path, tmp_path: Path) -> None:
    manifest, shards = ingest_csv(tree, tmp_path / "plain")
    plain = shards.info(0)
    assert "March 14, 2019" in plain["report"]["findings"] and "Roe" in plain["report"]["text"]
    assert manifest["transform"]["redact"] == {"built_in": "", "own_patterns": 0}
    assert manifest["counts"]["redacted_places"] == 0
    manifest, shards = ingest_csv(tree, tmp_path / "redacted", redact="all", redact_file=str(tmp_path / "own.txt"))
    redacted = shards.info(0)
    assert redacted["labels"] == plain["labels"] == {"Pleural Effusion": 1, "Pneumothorax": 0}
    assert (
        redacted["report"]["findings"]
        == "Compared to ___ there is a new right pleural effusion. No pneumothorax. ___."
    )
    assert redacted["report"]["impression"] == "Pleural effusion, discussed with Dr. ___ at ___, phone ___."
    assert redacted["report"]["text"] == f"{redacted['report']['findings']} {redacted['report']['impression']}"
    assert manifest["transform"]["redact"] == {"built_in": "all", "own_patterns": 1}
    assert manifest["counts"]["redacted_places"] == 5
    assert "North Wing" not in json.dumps(manifest)
    with pytest.raises(UserError, match="other settings"):
        ingest_csv(tree, tmp_path / "redacted", redact="dates")


def test_labels_are_read_before_redaction(tree: Path, tmp_path: Path) -> None:
    (tree / "manifest.csv").write_text("image,findings\na.png,Pleural effusion and cardiomegaly.\n")
    (tmp_path / "own.txt").write_text("effusion\n")
    _, redacted = ingest_csv(tree, tmp_path / "redacted", redact_file=str(tmp_path / "own.txt"))
    info = redacted.info(0)
    assert "effusion" not in info["report"]["text"]
    assert info["labels"] == {"Cardiomegaly": 1, "Pleural Effusion": 1}


def test_options_are_parsed_from_the_command_line() -> None:
    config = parse_config(IngestConfig, ["--source=csv", "--root=x", "--out=y", "--redact=dates,names"])
    assert config.redact == "dates,names" and config.burned_in == "refuse"


@pytest.mark.parametrize(("flag", "kept"), [("YES", 0), ("NO", 1), ("", 1), (None, 1)])
def test_burned_in_text_is_refused_unless_accepted(tmp_path: Path, flag: str | None, kept: int) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    dataset = sample_dicom()
    if flag is not None:
        dataset.BurnedInAnnotation = flag
    dataset.save_as(tree / "a.dcm", enforce_file_format=True)
    sample_dicom().save_as(tree / "b.dcm", enforce_file_format=True)
    (tree / "manifest.csv").write_text("image\na.dcm\nb.dcm\n")
    manifest, _ = ingest_csv(tree, tmp_path / "refused")
    assert manifest["counts"]["kept_studies"] == 1 + kept
    assert manifest["transform"]["burned_in"] == "refuse"
    if not kept:
        assert "burned" in next(iter(manifest["counts"]["reject_reasons"]))
    paths = [tree / "a.dcm", tree / "b.dcm"]
    assert len(try_images(paths, burned_in=False)[1]) == 1 - kept and not try_images(paths, burned_in=True)[1]
    manifest, _ = ingest_csv(tree, tmp_path / "accepted", burned_in="accept")
    assert manifest["counts"]["kept_studies"] == 2 and manifest["transform"]["burned_in"] == "accept"
