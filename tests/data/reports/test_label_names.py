"""Label names that are none of the 14 observations are counted, printed and recorded."""

from pathlib import Path

import pytest
from PIL import Image

from medunifier.data.ingest.command import IngestConfig, ingest, main
from medunifier.data.reports.label_names import MAX_NAMES, OTHER_NAMES, label_counts, label_lines


def test_each_name_is_mapped_or_dropped_once_per_study() -> None:
    studies = [("Effusion", "effusion", "COVID-19"), ("COVID-19 ", ""), ("covid-19", "Fibrosis"), ()]
    assert label_counts(studies) == {
        "COVID-19": {"observation": None, "studies": 3},
        "Effusion": {"observation": "Pleural Effusion", "studies": 1},
        "Fibrosis": {"observation": None, "studies": 1},
    }


def test_free_text_in_place_of_labels_is_not_recorded() -> None:
    table = label_counts([("word " * 50, *(f"name {number}" for number in range(MAX_NAMES + 10)))])
    assert len(table) == MAX_NAMES + 1 and table[OTHER_NAMES]["studies"] == 11
    assert not any("word" in name for name in table)
    assert len(label_lines(table, 5)) == 6


def test_ingest_and_check_print_and_record_what_became_of_the_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    rows = ["COVID-19", "COVID-19|Effusion", "Fibrosis"]
    for number in range(len(rows)):
        Image.linear_gradient("L").rotate(90 * number).save(root / f"{number}.png")
    lines = (f"{number}.png,{labels}" for number, labels in enumerate(rows))
    (root / "manifest.csv").write_text("\n".join(("image,labels", *lines)))
    main(["--source", "csv", "--root", str(root), "--workers", "1", "--check", "true"])
    checked = capsys.readouterr().out
    config = IngestConfig(source="csv", root=str(root), out=str(tmp_path / "out"), size=32, workers=1)
    counts = ingest(config)["counts"]["label_names"]
    printed = capsys.readouterr().err
    for name, observation, studies in (
        ("COVID-19", None, 2),
        ("Effusion", "Pleural Effusion", 1),
        ("Fibrosis", None, 1),
    ):
        assert counts[name] == {"observation": observation, "studies": studies}
        for output in (checked, printed):
            (line,) = (line for line in output.splitlines() if f"label {name}" in line)
            assert (observation or "dropped") in line and str(studies) in line.removeprefix(f"label {name}")
