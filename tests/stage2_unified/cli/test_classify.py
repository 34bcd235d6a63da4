"""Zero-shot classification: arbitrary labels, all input types, both output formats."""

import csv
import json
import shutil

import numpy as np
import pytest

from medunifier.data.reports.observations import FINDINGS
from medunifier.shared.command import run_command
from medunifier.shared.errors import UsageError, UserError
from medunifier.stage2_unified.cli.classify import main
from medunifier.stage2_unified.inference.inputs import codes_of, open_inputs
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.inference.prompts import chosen_prompts, trained_findings
from medunifier.stage2_unified.inference.zero_shot import PromptScorer
from tests.files import read_csv


def classify(model_folder, *more):
    return run_command(main, ["--model", str(model_folder), *map(str, more)])


@pytest.fixture(scope="module")
def pipeline(model_folder):
    return MedUnifierPipeline.from_pretrained(model_folder, "cpu", 8)


def test_the_preference_is_the_softmax_of_the_pair_at_the_model_temperature(pipeline, phantom_shards):
    source = open_inputs(str(phantom_shards), "test", pipeline.tokenizer)
    images = [source.read(number) for number in range(4)]
    embeddings = pipeline.embed_images(codes_of(pipeline, images), [image.view for image in images])
    scores = PromptScorer(pipeline, chosen_prompts("sentence", "edema, cardiac pacemaker"))(embeddings)
    for column, name in enumerate(["edema", "cardiac pacemaker"]):
        pair = pipeline.embed_texts([{"findings": f"There is {no}{name}."} for no in ("", "no ")])
        logits = embeddings @ pair.T * float(pipeline.model.logit_scale.detach().exp())
        expected = np.exp(logits[:, 0]) / np.exp(logits).sum(axis=1)
        assert np.allclose(scores.preference[:, column], expected, atol=1e-5)
        assert np.allclose(scores.similarity[:, column], embeddings @ pair[0], atol=1e-6)


def test_prompts_combine_by_mean_or_max_and_need_negatives_for_a_preference(pipeline, tmp_path):
    images = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    sentences = ["Effusion.", "Small effusion.", "Large effusion."]
    texts = pipeline.embed_texts([{"findings": sentence} for sentence in sentences])
    for combine in ("mean", "max"):
        path = tmp_path / f"{combine}.json"
        path.write_text(json.dumps({"combine": combine, "prompts": {"fluid": {"positive": sentences}}}))
        scores = PromptScorer(pipeline, chosen_prompts(str(path), "all"))(images)
        mean = texts.mean(axis=0) / np.linalg.norm(texts.mean(axis=0))
        expected = images @ mean if combine == "mean" else (images @ texts.T).max(axis=1)
        assert np.allclose(scores.similarity[:, 0], expected, atol=1e-6)
        assert np.isnan(scores.preference).all() and np.isnan(scores.denial).all()


def test_files_to_json_lines_and_shards_to_csv(model_folder, image_folder, phantom_shards, tmp_path, capsys):
    assert classify(model_folder, "--input", image_folder, "--labels", "chexpert5") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 6 and sum("error" in row for row in rows) == 1
    scores = rows[-1]["findings"]["Pleural Effusion"]
    assert len(rows[-1]["findings"]) == 5 and "not calibrated" in rows[-1]["notice"]
    assert scores.keys() == {"similarity", "denial_similarity", "statement_over_denial"}
    assert 0 < scores["statement_over_denial"] < 1

    options = ["--labels", "edema, cardiac pacemaker", "--samples", "3", "--out", tmp_path / "sampled.csv"]
    assert classify(model_folder, "--input", image_folder, *options) == 0
    with open(tmp_path / "sampled.csv", newline="") as file:
        sampled = [row for row in csv.DictReader(file) if not row["error"]]
    assert len(sampled) == 5 and {row["cardiac pacemaker sampled_probability"] for row in sampled} == {""}
    assert all(float(row["edema sampled_probability"]) * 6 % 1 == pytest.approx(0, abs=1e-4) for row in sampled)

    options = ["--input", phantom_shards, "--split=test", "--prompts=severity", "--labels=Edema", "--out"]
    assert classify(model_folder, *options, tmp_path / "scores.csv") == 0
    table = read_csv(tmp_path / "scores.csv")
    assert len(table) == 4 and float(table[0]["Edema similarity"]) and table[0]["Edema statement_over_denial"] == ""
    assert classify(model_folder, *options, tmp_path / "scores.csv") == 0
    assert "already complete" in capsys.readouterr().out
    assert classify(model_folder, *options[:-2], "--labels=Edema,Fracture", "--out", tmp_path / "scores.csv") == 1


def test_invalid_prompts_are_refused(tmp_path):
    with pytest.raises(UsageError, match="sentence, chexzero"):
        chosen_prompts("poem", "all")
    with pytest.raises(UserError, match="Pneumonia"):
        chosen_prompts("biovil", "Edema")
    with pytest.raises(UserError, match="no labels"):
        chosen_prompts("sentence", " , ")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError):
        chosen_prompts(str(tmp_path / "list.json"), "all")


def test_unknown_and_misspelt_findings_are_refused_with_the_nearest_name(tmp_path):
    for name, meant in (
        ("Pneumothroax", "pneumothorax"),
        ("Edema,pleurel effusion", "pleural effusion"),
        ("chexprt5", "chexpert5"),
        ("Blorb", "Edema"),
    ):
        with pytest.raises(UserError, match=meant):
            chosen_prompts("sentence", name)
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"prompts": {"fluid": {"positive": ["Fluid."]}, "air": {"positive": ["Air."]}}}))
    with pytest.raises(UserError, match="fluid"):
        chosen_prompts(str(path), "air,fluidd")
    for known in ("cardiac pacemaker", "rib fractures", "Small Left Effusion", "lung opacities", *FINDINGS):
        assert known in chosen_prompts("sentence", known).prompts


def test_the_findings_of_the_training_data_are_the_default_and_others_are_announced(
    model_folder, image_folder, tmp_path, capsys
):
    assert trained_findings(tmp_path) == ()
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / "README.md").write_text("- data: source `x`\n- findings: Pneumothorax, Edema\n")
    image = next(path for path in sorted(image_folder.rglob("*.png")) if path.name != "broken.png")
    assert classify(model_folder, "--input", image) == 0
    output = capsys.readouterr()
    assert len(json.loads(output.out)["findings"]) == 13 and "findings" in output.err, "a card without findings"
    assert classify(model, "--input", image) == 0
    output = capsys.readouterr()
    assert list(json.loads(output.out)["findings"]) == ["Edema", "Pneumothorax"] and "Fracture" not in output.err
    assert classify(model, "--input", image, "--labels", "rib fracture,edema") == 0
    output = capsys.readouterr()
    assert list(json.loads(output.out)["findings"]) == ["rib fracture", "edema"]
    assert sum("rib fracture" in line for line in output.err.splitlines()) == 1
