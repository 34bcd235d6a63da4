"""Published subsets: by their rule, a function of the seed, and readable by the evaluation."""

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
    """12 of each of the five that fit, and for each rule studies that break it."""
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


def draw(tmp_path, *argv):
    out = tmp_path / "draw.json"
    main([*map(str, argv), "--out", str(out)])
    return json.loads(out.read_text())


def test_5x200_follows_its_rule_and_the_seed(train_csv, tmp_path):
    wanted = ("5x200", "--labels", train_csv, "--per_class", 10)
    drawn = draw(tmp_path, *wanted)
    assert {name: len(ids) for name, ids in drawn["classes"].items()} == dict.fromkeys(LEADERBOARD, 10)
    rows = {row.name: row for row in read_labels(str(train_csv))}
    for finding, ids in drawn["classes"].items():
        for name in ids:
            positive = [key for key, value in rows[name].labels.items() if value == 1]
            assert positive == [finding] and -1 not in rows[name].labels.values() and rows[name].frontal
    assert (
        drawn["ids"] == [name for ids in drawn["classes"].values() for name in ids] and len(set(drawn["ids"])) == 50
    )
    assert len(drawn["source"]["sha256"]) == 64 and drawn["source"]["file"] == "train.csv" and drawn["seed"] == 0
    assert draw(tmp_path, *wanted) == drawn
    assert draw(tmp_path, *wanted, "--seed", 1)["ids"] != drawn["ids"]
    with gzip.open(tmp_path / "train.csv.gz", "wb") as file:
        file.write(train_csv.read_bytes())
    assert draw(tmp_path, "5x200", "--labels", tmp_path / "train.csv.gz", "--per_class", 10)["ids"] == drawn["ids"]


def test_a_subset_does_not_depend_on_the_order_of_the_rows():
    rows = [Candidate(f"s{i}", True, {"Edema": 1}) for i in range(30)]
    assert sample_classes(rows, ["Edema"], 5, 0) == sample_classes(rows[::-1], ["Edema"], 5, 0)


def test_too_few_are_refused_with_how_many_there_are(train_csv, tmp_path):
    with pytest.raises(UserError, match=r"12.*200.*--per_class 12"):
        draw(tmp_path, "5x200", "--labels", train_csv)
    with pytest.raises(UserError, match="Fracture.* 0 "):
        draw(tmp_path, "8x200", "--labels", train_csv, "--per_class", 2)


def test_a_subset_of_shards_is_what_is_evaluated(image_shards, image_data, tmp_path):
    pool = draw(tmp_path, "pool", "--data", image_shards, "--size", 20, "--seed", 3)
    assert pool["ids"] == EvaluationData(str(image_shards), None, 3).studies("test", 20).ids
    assert set(pool["source"]) == {"source", "split", "sections", "manifest_sha256"}
    ids = read_ids(str(tmp_path / "draw.json"))
    assert EvaluationData(str(image_shards), None, 0, None, ids).studies("test").ids == pool["ids"]
    everything = draw(tmp_path, "pool", "--data", image_shards)
    assert len(everything["ids"]) == 60 >= everything["distinct_reports"] > 1


def test_prompts_round_trip_through_their_file(tmp_path):
    for style in ("sentence", "chexzero", "severity"):
        content = draw(tmp_path, "prompts", "--style", style, "--label_set", "chexpert5")
        made = prompt_set(style, LEADERBOARD)
        assert content == made.to_json() and set(content["prompts"]) == set(LEADERBOARD)
        assert prompt_set(str(tmp_path / "draw.json"), FINDINGS) == made
    assert prompt_set("biovil", findings_of("rsna")).prompts == {"Pneumonia": BIOVIL}


def test_sets_have_the_published_sizes_and_known_names():
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
        ("{folder}/odd.json", ("Edema",), "odd.json"),
        ("{folder}/empty.json", ("Edema",), "empty.json"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(style, findings, text, tmp_path):
    (tmp_path / "odd.json").write_text('{"prompts": ["Edema."]}')
    (tmp_path / "empty.json").write_text('{"prompts": {"Edema": {"positive": []}}}')
    with pytest.raises(UserError) as refusal:
        prompt_set(style.format(folder=tmp_path), findings)
    assert text in str(refusal.value)


def test_wrong_calls_and_tables_are_answered_in_one_line(tmp_path, capsys, train_csv):
    (tmp_path / "odd.csv").write_text("Path,Edema\na,1\n")
    (tmp_path / "text.csv").write_text("Path," + ",".join(OBSERVATIONS) + "\na," + ",".join(["x"] * 14) + "\n")
    out = ["--out", str(tmp_path / "o.json")]
    for argv, code, text in [
        (["4x200", *out], 2, "4x200"),
        (["5x200", *out], 2, "either --labels FILE.csv or --data DIR"),
        (["pool", "--labels", str(train_csv), *out], 2, "--labels"),
        (["5x200", "--labels", str(tmp_path / "odd.csv"), *out], 1, "13 are missing"),
        (["5x200", "--labels", str(tmp_path / "text.csv"), *out], 1, "text.csv"),
        (["5x200", "--labels", str(tmp_path / "none.csv"), *out], 1, "not found"),
        (["prompts", "--label_set", "Oedema", *out], 1, "Oedema"),
    ]:
        assert run_command(main, argv) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and text in lines[0], lines
    assert not (tmp_path / "o.json").exists()
