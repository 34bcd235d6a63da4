"""Reports for files, folders and shards: one row per image, in order, with errors; interrupted and resumed."""

import json

import pytest

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.command import run_command
from medunifier.stage2_unified.cli import report as report_command
from medunifier.stage2_unified.cli.report import main
from medunifier.stage2_unified.inference.inputs import codes_of, open_inputs
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from tests.data.dicom_samples import sample_dicom
from tests.files import read_csv


def report(model_folder, *more):
    return run_command(main, ["--model", str(model_folder), "--batch_size=2", *map(str, more)])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_gives_one_row_per_file_with_errors(model_folder, image_folder, tmp_path, capsys):
    out = tmp_path / "reports.jsonl"
    assert report(model_folder, "--input", image_folder, "--out", out, "--view", "AP") == 0
    assert "1 of them unreadable" in capsys.readouterr().out
    rows = rows_of(out)
    assert [row["path"] for row in rows] == sorted(map(str, image_folder.rglob("*.png")))
    broken = [row for row in rows if "error" in row]
    assert [row["path"] for row in broken] == [str(image_folder / "broken.png")] and "PNG" in broken[0]["error"]
    read = next(row for row in rows if "error" not in row)
    assert {"findings", "impression", "labels", "notice"} <= read.keys() and read["view"] == "AP"
    assert report(model_folder, "--input", image_folder, "--out", out, "--view", "AP") == 0
    assert "already complete" in capsys.readouterr().out
    assert report(model_folder, "--input", image_folder, "--out", out, "--view", "PA") == 1
    assert "another --out" in capsys.readouterr().err


def test_an_undefined_view_position_is_not_written(model_folder, tmp_path):
    for name, position in (("a", "MILLER JOHN"), ("b", "LL")):
        dataset = sample_dicom()
        dataset.ViewPosition = position
        (tmp_path / "images").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "images" / f"{name}.dcm", enforce_file_format=True)
    out = tmp_path / "reports.jsonl"
    assert report(model_folder, "--input", tmp_path / "images", "--out", out) == 0
    assert [row["view"] for row in rows_of(out)] == ["", "LL"] and "MILLER" not in out.read_text()


def test_a_resumed_run_equals_an_uninterrupted_one(model_folder, image_folder, tmp_path, monkeypatch):
    assert report(model_folder, "--input", image_folder, "--out", tmp_path / "whole.jsonl") == 0
    labelled, label = [], report_command.label_report

    def stop_at_the_third(text):
        labelled.append(text)
        if len(labelled) == 3:
            raise KeyboardInterrupt
        return label(text)

    stopped = tmp_path / "stopped.jsonl"
    monkeypatch.setattr(report_command, "label_report", stop_at_the_third)
    assert report(model_folder, "--input", image_folder, "--out", stopped) == 130
    assert not stopped.exists() and (tmp_path / "stopped.jsonl.unfinished").is_file()
    before = len(labelled)
    assert report(model_folder, "--input", image_folder, "--out", stopped) == 0
    assert len(labelled) - before == 5 - 1  # the broken file and the first image were done before
    assert stopped.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_shards_give_a_row_per_study_and_csv_a_column_per_finding(model_folder, phantom_shards, tmp_path):
    assert report(model_folder, "--input", phantom_shards, "--split=test", "--out", tmp_path / "reports.csv") == 0
    rows = read_csv(tmp_path / "reports.csv")
    assert len(rows) == 4 and {"study_id", *OBSERVATIONS} <= rows[0].keys()
    assert {row["view"] for row in rows} <= {"PA", "AP"}
    assert report(model_folder, "--input", phantom_shards, "--split=nope") == 1


def test_studies_of_shards_are_encoded_independently_of_their_batch(model_folder, phantom_shards):
    pipeline = MedUnifierPipeline.from_pretrained(model_folder, "cpu", 4)
    source = open_inputs(str(phantom_shards), "", pipeline.tokenizer)
    assert len(source.keys) == 40 and len(set(source.keys)) == 40
    images = [source.read(number) for number in (39, 0, 7)]
    assert [image.key for image in images] == [source.keys[number] for number in (39, 0, 7)]
    codes = codes_of(pipeline, images)
    assert codes.shape == (3, *pipeline.tokenizer.grid)
    assert (codes[1:2] == codes_of(pipeline, images[1:2])).all()


@pytest.mark.parametrize(("options", "words"), [
    (["--input", "nowhere"], "not found"),
    (["--input", "{folder}", "--split=test"], "not a shard folder"),
    (["--input", "{folder}/broken.png"], "none of the 1 files could be read"),
])  # fmt: skip
def test_invalid_input_gives_a_one_line_error(model_folder, image_folder, tmp_path, capsys, options, words):
    options = [option.format(folder=image_folder) for option in options]
    assert report(model_folder, *options, "--out", tmp_path / "x.jsonl") == 1
    error = capsys.readouterr().err
    assert words in error and not list(tmp_path.iterdir())


def test_images_of_another_modality_are_left_out_with_the_reason(model_folder, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for name, modality in (("a", "CT"), ("b", "DX"), ("c", "OT"), ("d", "MR")):
        dataset = sample_dicom()
        dataset.Modality = modality
        dataset.save_as(tmp_path / "images" / f"{name}.dcm", enforce_file_format=True)
    assert report(model_folder, "--input", tmp_path / "images") == 0
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert ["modality" in row.get("error", "") for row in rows] == [True, False, False, True]
    assert sum("2 of them unreadable" in line for line in output.err.splitlines()) == 1
    assert report(model_folder, "--input", tmp_path / "images" / "a.dcm") == 1
    assert "modality" in capsys.readouterr().err
