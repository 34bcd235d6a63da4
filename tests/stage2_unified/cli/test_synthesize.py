"""Generated images follow texts, findings and counts, and every file is marked synthetic."""

import json
import shutil

import numpy as np
import pydicom
import pytest
from PIL import Image

from medunifier.shared.command import run_command
from medunifier.shared.errors import UsageError, UserError
from medunifier.stage2_unified.cli.synthesize import main
from medunifier.stage2_unified.inference.generation_prompts import read_prompts
from medunifier.stage2_unified.inference.report_text import text_of_labels


def synthesize(model_folder, *more):
    return run_command(main, ["--model", str(model_folder), "--batch_size=3", *map(str, more)])


def plan_of(out):
    return json.loads((out / "prompts.json").read_text())["images"]


def test_findings_become_sentences():
    assert text_of_labels(["Edema", " no Pneumothorax "]) == "There is edema. There is no pneumothorax."
    assert text_of_labels({"Edema": 0, "Fracture": 1, "Pneumonia": -1}) == "There is no edema. There is fracture."
    assert text_of_labels(["Edema"], "{finding} is seen.") == "edema is seen."
    assert text_of_labels([]) == ""


def test_a_file_has_texts_labels_counts_and_views(tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text("findings,labels,count,view\nClear lungs.,Edema,2,\n,Edema|no Fracture,,LATERAL\n,,0,\n")
    prompts = read_prompts(table, 5, "PA")
    assert [(p.count, p.view) for p in prompts] == [(2, "PA"), (5, "LATERAL"), (0, "PA")]
    assert prompts[0].report["findings"] == "Clear lungs."
    assert prompts[1].report["findings"] == "There is edema. There is no fracture."
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"labels": ["Edema"], "count": 1}\n{"labels": {"Edema": 0}}\n{"impression": "Clear."}\n')
    assert [p.report["findings"] for p in read_prompts(lines, 1, "AP")] == [
        "There is edema.",
        "There is no edema.",
        "",
    ]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.csv", "findings,count\nClear.,many\n", "row 1: count"),
    ("a.csv", "findings,count\nClear.,-1\n", "row 1: count"),
    ("a.csv", "text\nClear.\n", "no row with findings"),
    ("a.jsonl", "[1]\n", "expected names"),
    ("a.jsonl", "{\n", "cannot be read"),
])  # fmt: skip
def test_invalid_prompt_files_are_refused(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        read_prompts(tmp_path / name, 1, "PA")
    with pytest.raises(UsageError, match="must be"):
        read_prompts(tmp_path / "a.xlsx", 1, "PA")


def test_counts_and_views_are_generated_and_a_second_run_completes_them(model_folder, tmp_path, capsys):
    table, out = tmp_path / "prompts.csv", tmp_path / "generated"
    table.write_text("labels,count,view\nEdema,3,PA\nFracture,1,LATERAL\n")
    options = ["--file", table, "--out", out, "--guidance=1", "--seed=5"]
    assert synthesize(model_folder, *options) == 0
    plan = plan_of(out)
    assert [row["view"] for row in plan] == ["PA"] * 3 + ["LATERAL"] and [row["seed"] for row in plan] == [5, 6, 7, 8]
    assert plan[3]["findings"] == "There is fracture."
    before = [(out / row["file"]).read_bytes() for row in plan]
    (out / plan[1]["file"]).unlink()
    (out / ".partial-1-prompts.json").write_text("half")  # left by a killed process
    assert synthesize(model_folder, *options) == 0
    assert [(out / row["file"]).read_bytes() for row in plan] == before and not list(out.glob(".partial-*"))
    with Image.open(out / plan[0]["file"]) as image:
        assert image.text["Source"] == "synthetic" and "no patient" in image.text["Comment"]
        assert len(np.unique(np.asarray(image))) > 1
    assert synthesize(model_folder, *options[:-1], "--seed=6") == 1
    assert "another --out" in capsys.readouterr().err


def test_dicom_is_marked_synthetic_and_has_no_patient(model_folder, tmp_path):
    out = tmp_path / "generated"
    options = ["--labels=Edema, no Fracture", "--format=dicom", "--count=2", "--out", out, "--view=AP"]
    assert synthesize(model_folder, *options) == 0
    datasets = [pydicom.dcmread(out / row["file"]) for row in plan_of(out)]
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 2
    for dataset in datasets:
        assert dataset.ImageType == ["DERIVED", "SECONDARY"] and "Synthetic" in dataset.DerivationDescription
        assert "stated: Edema; denied: Fracture." in dataset.DerivationDescription
        assert not dataset.PatientName and not dataset.PatientID and dataset.ViewPosition == "AP"


PLANTED = ("Zebedee", "Quimby", "617-555-0123", "MRN 4471", "19031203")


def test_no_identifier_of_a_prompt_is_written(model_folder, tmp_path):
    """Of a prompt table, only observations and the view are written into the generated file."""
    table = tmp_path / "prompts.csv"
    table.write_text(
        "findings,impression,view,patient_id,PatientName,PatientBirthDate,study_id\n"
        '"Zebedee Quimby, MRN 4471, has edema.","Dr. Quimby, 617-555-0123.",Quimby,Zebedee,Quimby,19031203,4471\n'
    )
    for kind in ("dicom", "png"):
        out = tmp_path / kind
        assert synthesize(model_folder, "--file", table, "--out", out, f"--format={kind}") == 0
        (row,) = plan_of(out)
        content = (out / row["file"]).read_bytes()
        assert b"stated: Edema" in content and not any(word.encode() in content for word in PLANTED)
        assert "patient_id" not in row and "Zebedee" in row["findings"], "prompts.json keeps the text"


@pytest.mark.parametrize("options", [["--text=a", "--labels=Edema"], ["--label_template=edema"], ["--count=0"]])
def test_invalid_options_are_refused(model_folder, tmp_path, options):
    assert synthesize(model_folder, *options, "--out", tmp_path / "x") == 2 and not (tmp_path / "x").exists()


def test_misspelt_findings_are_refused_and_untrained_ones_announced(model_folder, tmp_path, capsys):
    table = tmp_path / "prompts.csv"
    table.write_text("labels\nEdema|no pneumothroax\n")
    for options, meant in (
        (["--labels=Edemaa"], "edema"), (["--labels=no Fractur"], "fracture"), (["--file", table], "pneumothorax"),
    ):  # fmt: skip
        assert synthesize(model_folder, *options, "--out", tmp_path / "x") == 1 and not (tmp_path / "x").exists()
        assert meant in capsys.readouterr().err
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / "README.md").write_text("- findings: Edema\n")
    options = ["--labels=Edema, no Fracture", "--guidance=1"]
    assert synthesize(model, *options, "--out", tmp_path / "x") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not trained" in line]
    assert "fracture" in line
