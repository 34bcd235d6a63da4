"""The notebook runs from top to bottom, and shows all ten names."""

import json

import matplotlib
import pytest
from PIL import Image

import medunifier


def code_cells(root):
    notebook = json.loads((root / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def ran(root, monkeypatch, tmp_path, capsys):
    """What the cells leave behind, and what they print; without a notebook's machinery, which runs the same code."""
    matplotlib.use("Agg")
    monkeypatch.chdir(root)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(root)):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    matplotlib.pyplot.close("all")
    return names, capsys.readouterr().out


def test_every_cell_runs_and_its_results_are_what_the_text_says(ran):
    names, printed = ran
    h, w = names["tokenizer"].grid
    assert names["codes"].shape == (4, h, w) and names["rebuilt"].shape == names["images"].shape
    assert names["similarity"].shape == (4, 4) and len(names["written"]) == 4
    assert names["drawn_codes"].shape[0] == 2 and 0 <= names["drawn_codes"].min() < names["tokenizer"].codes
    truth = names["study"].labels
    assert truth and {name: names["labels"].get(name) for name in truth} == truth
    assert "training studies" in printed
    assert len(names["train"]) > 0 and names["pixels"].shape == (64, 64)
    with Image.open(names["work"] / "drawn.png") as picture:
        assert picture.text["Source"] == "synthetic" and "stated: Pleural Effusion" in picture.text["Description"]


def test_it_shows_all_public_names_and_carries_no_output(root):
    cells = code_cells(root)
    source = "".join(line for cell in cells for line in cell["source"])
    assert all(source.count(name) >= 2 for name in medunifier.__all__), "imported, and used"
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    assert "not a medical device" in (root / "docs" / "notebook.ipynb").read_text(encoding="utf-8")
