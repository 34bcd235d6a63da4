import gzip

import pytest

from medunifier.data.reports.label_names import closed_labels, observation, positive_labels
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.sources.tables import find_table, read_table, split_name
from medunifier.shared.errors import UserError


def test_cells_are_stripped_nan_is_blank_and_other_columns_are_dropped(tmp_path):
    path = tmp_path / "t.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8-sig") as file:
        file.write('A, b ,c\n x ,NaN,1\n"two\nlines",,\nshort\n')
    problems = []
    rows = read_table(path, ["a", "B"], problems, optional=["d"])
    assert rows == [
        {"a": "x", "B": "", "d": ""},
        {"a": "two\nlines", "B": "", "d": ""},
        {"a": "short", "B": "", "d": ""},
    ]
    assert problems == [] and [row.where.rpartition(" ")[2] for row in rows] == ["2", "4", "5"]
    assert read_table(path, ["a", "c"], problems, needed=["c"]) == [{"a": "x", "c": "1"}]
    assert [problem.reason for problem in problems] == ["row without c", "row without c"]


@pytest.mark.parametrize("content", [b"a,b\n\x81\n", b'a,b\n"' + b"x" * 200_000 + b'"\n', b""])
def test_an_invalid_table_is_refused(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.csv"):
        read_table(path, ["a"], [])


def test_a_truncated_gzip_table_is_refused(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" * 1000)[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        read_table(path, ["a"], [])


def test_the_newest_version_of_a_table_is_used(tmp_path):
    for name in ("m-2.0.0-split.csv.gz", "m-2.1.0-split.csv.gz"):
        (tmp_path / name).touch()
    assert find_table(tmp_path, "m-2*-split").name == "m-2.1.0-split.csv.gz"
    assert find_table(tmp_path, "m-3*-split") is None


def test_split_names():
    assert [split_name(name, "") for name in ("Train", "valid", "val", "test", "")] == [
        "train", "validate", "validate", "test", None,
    ]  # fmt: skip
    with pytest.raises(UserError, match="line 3.*dev"):
        split_name("dev", "t.csv, line 3")


def test_observations_map_to_themselves_and_unknown_names_to_none():
    assert all(observation(name.upper()) == name for name in OBSERVATIONS)
    assert observation("Pleural_Thickening") == "Pleural Other" and observation("Hernia") is None
    assert positive_labels(["Hernia", "Mass", "Nodule"]) == {"Lung Lesion": 1}


def test_closed_labels_are_negative_only_for_listed_names():
    listed = ("Mass", "Infiltration", "Edema", "No Finding")
    assert closed_labels(["No Finding"], listed) == {
        "Lung Opacity": 0, "Lung Lesion": 0, "Edema": 0, "No Finding": 1,
    }  # fmt: skip
    # Two names of one observation, one marked: positive.
    assert closed_labels(["Nodule"], ("Nodule", "Mass", "Edema")) == {"Lung Lesion": 1, "Edema": 0}
    # An edema is an opacity, so an unmarked infiltration does not make Lung Opacity negative.
    assert "Lung Opacity" not in closed_labels(["Edema"], listed)
