"""The notebook runs from top to bottom and uses the public names."""

import contextlib
import io
import json

import matplotlib
import pytest
from PIL import Image

import medunifier


def code_cells(root):
    notebook = json.loads((root / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def ran(root, tmp_path_factory):
    """The names that the cells define and what they print. The cells run without a notebook kernel."""
    matplotlib.use("Agg")
    names, printed = {"__name__": "__main__"}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(root)
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("notebook")))
        patch.setattr("tempfile.tempdir", None)
        for number, cell in enumerate(code_cells(root)):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    matplotlib.pyplot.close("all")
    return names, printed.getvalue()


def test_every_cell_runs_and_its_results_are_what_the_text_says(ran):
    names, printed = ran
    h, w = names["tokenizer"].grid
    assert names["codes"].shape == (4, h, w) and names["rebuilt"].shape == names["images"].shape
    assert names["similarity"].shape == (4, 4) and len(names["written"]) == 4
    assert (
        names["generated_codes"].shape[0] == 2
        and 0 <= names["generated_codes"].min() < names["tokenizer"].codebook_size
    )
    truth = names["study"].labels
    assert truth and {name: names["labels"].get(name) for name in truth} == truth
    assert "training studies" in printed
    assert len(names["train"]) > 0 and names["pixels"].shape == (64, 64)
    with Image.open(names["work"] / "generated.png") as picture:
        assert picture.text["Source"] == "synthetic" and "stated: Pleural Effusion" in picture.text["Description"]


def test_it_imports_all_public_names(ran):
    names, _ = ran
    assert [name for name in medunifier.__all__ if names.get(name) is not getattr(medunifier, name)] == []


def test_it_carries_no_output(root):
    cells = code_cells(root)
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    assert "not a medical device" in (root / "docs" / "notebook.ipynb").read_text(encoding="utf-8")
