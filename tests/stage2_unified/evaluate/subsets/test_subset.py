"""Published subsets follow their rule and the seed, and can be evaluated."""

import csv
import gzip
import json

import pytest

from medunifier.data.reports.observations import LEADERBOARD, OBSERVATIONS
from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.evaluate.command import read_ids
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from medunifier.stage2_unified.evaluate.subsets.subset import Candidate, main, read_labels, sample_classes
from medunifier.stage2_unified.inference.prompts import (
    BIOVIL,
    FINDINGS,
    LABEL_SETS,
    findings_of,
    prompt_pair,
    prompt_set,
)


def chexpert_row(number, frontal="Frontal", **labels):
    row = {"Path": f"CheXpert-v1.0-small/train/patient{number:05}/study1/view1_frontal.jpg", "Sex": "", "Age": "60"}
    return row | {"Frontal/Lateral": frontal, "AP/PA": "AP"} | {n: labels.get(n, "") for n in OBSERVATIONS}


@pytest.fixture
def train_csv(tmp_path):
    """A label table with 12 eligible studies of each of five findings, and studies that break each rule."""
    rows, number = [], 0
    for finding in LEADERBOARD:
        for i in range(12):
            rows.append(chexpert_row(number := number + 1, **{finding: "1.0", "Fracture": "0.0" if i % 2 else ""}))
        rows.append(chexpert_row(number := number + 1, **{finding: "1.0", "Fracture": "1.0"}))
        rows.append(chexpert_row(number := number + 1, **{finding: "1.0", "Pleural Other": "-1.0"}))
        rows.append(chexpert_row(number := number + 1, "Lateral", **{finding: "1.0"}))
        rows.append(chexpert_row(number := number + 1, **{finding: "-1.0"}))
    path = tmp_path / "train.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def subset(tmp_path, *argv):
    out = tmp_path / "subset.json"
    main([*map(str, argv), "--out", str(out)])
    return json.loads(out.read_text())


def test_5x200_follows_its_rule_and_the_seed(train_csv, tmp_path):
    argv = ("5x200", "--labels", train_csv, "--per_class", 10)
    sampled = subset(tmp_path, *argv)
    assert {name: len(ids) for name, ids in sampled["classes"].items()} == dict.fromkeys(LEADERBOARD, 10)
    rows = {row.name: row for row in read_labels(str(train_csv))}
    for finding, ids in sampled["classes"].items():
        for name in ids:
            positive = [key for key, value in rows[name].labels.items() if value == 1]
            assert positive == [finding] and -1 not in rows[name].labels.values() and rows[name].frontal
    assert (
        sampled["ids"] == [name for ids in sampled["classes"].values() for name in ids]
        and len(set(sampled["ids"])) == 50
    )
    assert (
        len(sampled["source"]["sha256"]) == 64 and sampled["source"]["file"] == "train.csv" and sampled["seed"] == 0
    )
    assert subset(tmp_path, *argv) == sampled
    assert subset(tmp_path, *argv, "--seed", 1)["ids"] != sampled["ids"]
    with gzip.open(tmp_path / "train.csv.gz", "wb") as file:
        file.write(train_csv.read_bytes())
    assert (
        subset(tmp_path, "5x200", "--labels", tmp_path / "train.csv.gz", "--per_class", 10)["ids"] == sampled["ids"]
    )


def test_a_subset_does_not_depend_on_the_order_of_the_rows():
    rows = [Candidate(f"s{i}", True, {"Edema": 1}) for i in range(30)]
    assert sample_classes(rows, ["Edema"], 5, 0) == sample_classes(rows[::-1], ["Edema"], 5, 0)


def test_a_class_with_too_few_studies_is_refused(train_csv, tmp_path):
    with pytest.raises(UserError, match=r"12.*200.*--per_class 12"):
        subset(tmp_path, "5x200", "--labels", train_csv)
    with pytest.raises(UserError, match="Fracture.* 0 "):
        subset(tmp_path, "8x200", "--labels", train_csv, "--per_class", 2)


def test_a_pool_is_the_sample_that_is_evaluated(image_shards, image_data, tmp_path):
    pool = subset(tmp_path, "pool", "--data", image_shards, "--size", 20, "--seed", 3)
    assert pool["ids"] == EvaluationData(str(image_shards), None, 3).studies("test", 20).ids
    assert set(pool["source"]) == {"source", "split", "sections", "manifest_sha256"}
    ids = read_ids(str(tmp_path / "subset.json"))
    assert EvaluationData(str(image_shards), None, 0, None, ids).studies("test").ids == pool["ids"]
    everything = subset(tmp_path, "pool", "--data", image_shards)
    assert len(everything["ids"]) == 60 >= everything["distinct_reports"] > 1


def test_prompts_round_trip_through_their_file(tmp_path):
    for style in ("sentence", "chexzero", "severity"):
        content = subset(tmp_path, "prompts", "--style", style, "--label_set", "chexpert5")
        expected = prompt_set(style, LEADERBOARD)
        assert content == expected.to_json() and set(content["prompts"]) == set(LEADERBOARD)
        assert prompt_set(str(tmp_path / "subset.json"), FINDINGS) == expected
    assert prompt_set("biovil", findings_of("rsna")).prompts == {"Pneumonia": BIOVIL}


def test_label_sets_have_the_published_sizes_and_known_findings():
    assert [len(LABEL_SETS[name]) for name in ("chexpert5", "chexpert8", "medunifier5", "rsna")] == [5, 8, 5, 1]
    assert all(set(names) <= set(OBSERVATIONS) for names in LABEL_SETS.values())
    assert set(LABEL_SETS["medunifier5"]) ^ set(LEADERBOARD) == {"Pneumonia", "Consolidation"}
    assert findings_of("Edema, Fracture") == ("Edema", "Fracture")


def test_composed_prompts_are_sentences_without_gaps():
    sentences = prompt_set("severity", ["Pleural Effusion", "Cardiomegaly"]).prompts["Pleural Effusion"][0]
    assert "Mild pleural effusion on the left." in sentences and "Pleural effusion." in sentences
    assert all(s == " ".join(s.split()) and s[0].isupper() and s.endswith(".") for s in sentences)
    assert prompt_pair("Pleural Effusion", "chexzero") == ("Pleural effusion.", "No pleural effusion.")
    assert prompt_pair("Edema", "sentence") == ("There is edema.", "There is no edema.")


@pytest.mark.parametrize(
    ("style", "findings", "text"),
    [
        ("gloria", ("Edema",), "gloria"),
        ("biovil", ("Edema",), "Pneumonia"),
        ("{folder}/none.json", ("Edema",), "not found"),
        ("{folder}/list.json", ("Edema",), "list.json"),
        ("{folder}/empty.json", ("Edema",), "empty.json"),
    ],
)
def test_invalid_prompts_are_refused(style, findings, text, tmp_path):
    (tmp_path / "list.json").write_text('{"prompts": ["Edema."]}')
    (tmp_path / "empty.json").write_text('{"prompts": {"Edema": {"positive": []}}}')
    with pytest.raises(UserError) as refusal:
        prompt_set(style.format(folder=tmp_path), findings)
    assert text in str(refusal.value)


def test_invalid_arguments_and_tables_give_one_error_line(tmp_path, capsys, train_csv):
    (tmp_path / "columns.csv").write_text("Path,Edema\na,1\n")
    (tmp_path / "text.csv").write_text("Path," + ",".join(OBSERVATIONS) + "\na," + ",".join(["x"] * 14) + "\n")
    out = ["--out", str(tmp_path / "o.json")]
    for argv, code, text in [
        (["4x200", *out], 2, "4x200"),
        (["5x200", *out], 2, "either --labels FILE.csv or --data DIR"),
        (["pool", "--labels", str(train_csv), *out], 2, "--labels"),
        (["5x200", "--labels", str(tmp_path / "columns.csv"), *out], 1, "13 are missing"),
        (["5x200", "--labels", str(tmp_path / "text.csv"), *out], 1, "text.csv"),
        (["5x200", "--labels", str(tmp_path / "none.csv"), *out], 1, "not found"),
        (["prompts", "--label_set", "Oedema", *out], 1, "Oedema"),
    ]:
        assert run_command(main, argv) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and text in lines[0], lines
    assert not (tmp_path / "o.json").exists()
