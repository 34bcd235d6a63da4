"""Outputs of other systems: equal to a model's evaluation, at the ceiling for the truth, one-line errors."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from medunifier.shared.command import run_command
from medunifier.stage2_unified.evaluate.command import EvaluateConfig, evaluate, main
from tests.stage2_unified.evaluate.phantom_oracle import FakeTokenizer, Oracle


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def refusal(argv, capsys):
    """Return the exit code and the one error line on standard error."""
    code = run_command(main, argv)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    return code, lines[0]


def evaluated(argv, out):
    main([*argv, "--out", str(out), "--bootstrap", "10"])
    return json.loads(out.read_text())


# reports


@pytest.mark.parametrize("flipped", [0, 7, 50, 100])
def test_flipped_reports_move_clinical_f1_by_the_computed_amount(flipped, tmp_path, capsys):
    # Each study has one finding of two; a flip turns a hit into a false negative and a false positive.
    texts = ["There is pulmonary edema.", "There is a pneumothorax."]
    truth = [{"study_id": f"s{i}", "patient_id": f"p{i // 2}", "report": texts[i % 2]} for i in range(100)]
    written = [{"study_id": row["study_id"], "report": texts[(i + (i < flipped)) % 2]} for i, row in enumerate(truth)]
    result = evaluated(
        ["external-reports", "--predictions", write_csv(tmp_path / "p.csv", written[::-1]),
         "--references", write_csv(tmp_path / "r.csv", truth)], tmp_path / "o.json"
    )  # fmt: skip
    assert result["metrics"]["reports.clinical_f1_micro"] == pytest.approx((100 - flipped) / 100)
    assert result["data"]["evaluated"]["reports"]["patients"] == 50
    assert "METEOR" not in result["metrics"] and "meteor" in result["details"]["reports"]["left_out"]
    assert any("no labels" in note for note in result["notes"])
    assert len(result["details"]["reports"]["failures"]) == min(flipped, 4)
    page = (tmp_path / "o.html").read_text()
    assert "Study s0" in page and "no labels" in page


def test_reference_labels_are_used_and_empty_reports_count(tmp_path):
    rows = [{"study_id": "a", "report": "Clear lungs.", "Edema": "1", "Fracture": "-1"},
            {"study_id": "b", "report": "Edema.", "Edema": "", "Fracture": "0"}]  # fmt: skip
    written = [{"study_id": "a", "report": "Edema."}, {"study_id": "b", "report": ""}]
    result = evaluated(
        ["external-reports", "--predictions", write_csv(tmp_path / "p.csv", written),
         "--references", write_csv(tmp_path / "r.csv", rows)], tmp_path / "o.json"
    )  # fmt: skip
    per_finding = result["details"]["reports"]["per_finding"]
    assert per_finding["Edema"]["f1"] == 1 and per_finding["Fracture"]["support"] == 1
    assert result["metrics"]["reports.clinical_f1_micro"] == pytest.approx(2 / 3)
    assert result["metrics"]["reports.clinical_f1_micro_uncertain_negative"] == 1
    assert result["details"]["reports"]["empty_reports"] == 1


def test_a_single_study_has_an_interval_of_zero_width(tmp_path):
    truth = [{"study_id": "a", "report": "There is edema. No effusion."}]
    written = [{"study_id": "a", "report": "There is edema."}]
    result = evaluated(
        ["external-reports", "--predictions", write_csv(tmp_path / "p.csv", written),
         "--references", write_csv(tmp_path / "r.csv", truth)], tmp_path / "o.json"
    )  # fmt: skip
    assert result["metrics"]["reports.clinical_f1_micro"] == 1 > result["metrics"]["reports.rouge_l"] > 0.5
    assert result["details"]["reports"]["intervals"]["reports.clinical_f1_micro"] == [1, 1]


def test_reports_scored_as_external_match_the_evaluation_of_the_model(studies, image_shards, tmp_path):
    config = EvaluateConfig("m", str(image_shards), str(tmp_path / "model.json"), limit=30, bootstrap=5)
    direct = evaluate("reports", config, FakeTokenizer(), Oracle(studies, shuffled=True), "")
    external = evaluated(
        ["external-reports", "--predictions", str(tmp_path / direct["reports"]), "--data", str(image_shards)],
        tmp_path / "external.json",
    )
    assert external["metrics"] == direct["metrics"] and external["protocol"] == direct["protocol"]
    assert external["notes"] == ["The predictions cover 30 of the 60 studies of the split."]


def test_invalid_tables_give_one_error_line(tmp_path, capsys):
    good = write_csv(tmp_path / "good.csv", [{"study_id": "a", "report": "x"}, {"study_id": "b", "report": "y"}])
    one = write_csv(tmp_path / "one.csv", [{"study_id": "a", "report": "x"}])
    duplicate = write_csv(tmp_path / "duplicate.csv", [{"study_id": "a", "report": "x"}] * 2)
    blank = write_csv(tmp_path / "blank.csv", [{"study_id": "a", "report": "x"}, {"study_id": " ", "report": "y"}])
    label = write_csv(tmp_path / "label.csv", [{"study_id": "a", "report": "x", "Edema": "yes"}])
    column = write_csv(tmp_path / "column.csv", [{"id": "a", "report": "x"}])
    no_words = write_csv(tmp_path / "no_words.csv", [{"study_id": "a", "report": ""}])
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00study")
    (tmp_path / "head.csv").write_text("study_id,report\n")
    for predictions, references, text in [
        (good, one, "such as b"),
        (one, good, "1 of 2"),
        (duplicate, good, "such as a"),
        (good, duplicate, "such as a"),
        (blank, good, "row 3: study_id"),
        (good, label, "row 2: Edema is 'yes'"),
        (column, good, "id, report"),
        (one, no_words, "report"),
        (str(tmp_path / "empty.csv"), good, "study_id"),
        (str(tmp_path / "binary.csv"), good, "binary.csv"),
        (str(tmp_path / "head.csv"), good, "head.csv"),
        (str(tmp_path / "none.csv"), good, "none.csv not found"),
    ]:
        argv = [
            "external-reports",
            "--predictions",
            predictions,
            "--references",
            references,
            "--out",
            str(tmp_path / "o.json"),
        ]
        code, line = refusal(argv, capsys)
        assert code == 1 and text in line, line
    assert not (tmp_path / "o.json").exists()
    both = [
        "external-reports",
        "--predictions",
        good,
        "--references",
        good,
        "--data",
        "d",
        "--out",
        str(tmp_path / "o.json"),
    ]
    assert refusal(both, capsys)[0] == 2
    missing = ["--scorers.wordnet", str(tmp_path), "--references", good, "--out", str(tmp_path / "o.json")]
    assert "no WordNet" in refusal(["external-reports", "--predictions", good, *missing], capsys)[1]


# images


def save_images(folder, images, prompts=0):
    for i, image in enumerate(images):
        target = folder / f"prompt{i % prompts}" if prompts else folder
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).astype(np.uint8)).save(target / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def phantoms(studies):
    return [pixels / 255 for pixels, _ in studies[:48]]


def test_copies_in_another_folder_have_distance_zero_and_a_note(phantoms, tmp_path, capsys):
    real = save_images(tmp_path / "real", phantoms[:24])
    copies = shutil.copytree(real, tmp_path / "copies")
    argv = ["external-images", "--generated", str(copies), "--real", real, "--image_size", "32"]
    result = evaluated(argv, tmp_path / "o.json")
    figures = result["metrics"]
    assert figures["synthesis.fid"] < 1e-6 and figures["synthesis.recall"] == figures["synthesis.precision"] == 1
    assert result["notes"] == ["24 images of generated are copies, pixel for pixel, of images of real."]
    assert "note: 24 images" in capsys.readouterr().out
    other = evaluated(
        ["external-images", "--generated", save_images(tmp_path / "other", phantoms[24:]), "--real", real,
         "--image_size", "32", "--train", str(copies)], tmp_path / "other.json"
    )  # fmt: skip
    assert other["metrics"]["synthesis.fid"] > 1e-4 and other["data"]["manifest_sha256"]
    transform = other["data"]["transform"]
    assert transform["size"] == 32 and transform["stored"]["real"] == {"32 x 32": 24}
    assert "random" in other["details"]["synthesis"]["feature_net"]["name"]
    assert other["details"]["synthesis"]["warning"].startswith("24 images for 64 features")
    assert len(other["details"]["synthesis"]["nearest_pairs"]) == 4
    generated = Image.open(tmp_path / "other-pictures" / "synthesis-generated-0.png")
    assert generated.info["Source"] == "synthetic"


def test_a_subfolder_holds_the_images_of_a_prompt(phantoms, tmp_path):
    same = [phantoms[i % 4] for i in range(12)]
    argv = ["--real", save_images(tmp_path / "real", phantoms[24:40]), "--image_size", "32"]
    constant = evaluated(
        ["external-images", "--generated", save_images(tmp_path / "a", same, 4), *argv], tmp_path / "a.json"
    )
    varied = evaluated(
        ["external-images", "--generated", save_images(tmp_path / "b", phantoms[:12], 4), *argv], tmp_path / "b.json"
    )
    assert constant["metrics"]["synthesis.ms_ssim_within"] == pytest.approx(1, abs=1e-5)
    assert varied["metrics"]["synthesis.ms_ssim_within"] < 0.99
    assert constant["details"]["synthesis"]["variety"]["prompts"] == 4


def test_invalid_folders_give_one_error_line(phantoms, tmp_path, capsys, monkeypatch):
    real = save_images(tmp_path / "real", phantoms[:8])
    fake = save_images(tmp_path / "fake", phantoms[8:16])
    (tmp_path / "empty").mkdir()
    save_images(tmp_path / "one", phantoms[16:17])
    os.symlink(real, tmp_path / "link")
    (tmp_path / "partly").mkdir()
    os.symlink(tmp_path / "real" / "3.png", tmp_path / "partly" / "mine.png")
    shutil.copytree(fake, tmp_path / "broken")
    (tmp_path / "broken" / "2.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    for generated, truth, text in [
        (real, real, "share 8 files"),
        (str(tmp_path / "link"), real, "share 8 files"),
        ("real", real, "share 8 files"),
        (str(tmp_path), real, "share"),
        (str(tmp_path / "partly"), real, "share 1 files"),
        (str(tmp_path / "empty"), real, "no images in"),
        (fake, str(tmp_path / "empty"), "no images in"),
        (str(tmp_path / "one"), real, "holds one image, 0.png"),
        (fake, str(tmp_path / "one"), "holds one image, 0.png"),
        (f"{fake}/*.png", real, "is no folder"),
        (f"{fake}/8.png", real, "is no folder"),
        (str(tmp_path / "broken"), real, "2.png"),
    ]:
        argv = ["external-images", "--generated", generated, "--real", truth, "--out", "o.json", "--image_size", "32"]
        code, line = refusal(argv, capsys)
        assert code == 1 and text in line, line
    net = [
        "external-images",
        "--generated",
        fake,
        "--real",
        real,
        "--out",
        "o.json",
        "--feature_net",
        "inception_v3",
    ]
    assert "nothing is downloaded" in refusal(net, capsys)[1]
    assert not (tmp_path / "o.json").exists()


# embeddings


def test_oracle_embeddings_reach_the_ceiling_and_shuffled_ones_are_at_chance(tmp_path):
    rng = np.random.default_rng(0)
    classes = np.repeat(["Edema", "Fracture", "Pneumonia"], 40)
    embeddings = rng.normal(size=(120, 16)) * 0.01 + np.eye(16)[np.repeat([0, 1, 2], 40)]
    shared = {"classes": classes, "patients": np.arange(120) // 2}
    np.savez(tmp_path / "best.npz", image=embeddings, text=embeddings * 3, **shared)
    np.savez(tmp_path / "worst.npz", image=rng.permutation(embeddings), text=embeddings, **shared)
    best = evaluated(["external-embeddings", "--embeddings", str(tmp_path / "best.npz")], tmp_path / "best.json")
    worst = evaluated(["external-embeddings", "--embeddings", str(tmp_path / "worst.npz")], tmp_path / "worst.json")
    for direction in ("image_to_text", "text_to_image"):
        assert best["metrics"][f"retrieval.{direction}_r1"] == best["metrics"][f"retrieval.{direction}_p10"] == 1
        assert worst["metrics"][f"retrieval.{direction}_r10"] == pytest.approx(10 / 120, abs=0.1)
        assert worst["metrics"][f"retrieval.{direction}_p10"] == pytest.approx(1 / 3, abs=0.1)
        assert worst["metrics"][f"retrieval.{direction}_p10.baseline"] == pytest.approx(1 / 3)
    assert best["details"]["retrieval"]["classes"] == {"Edema": 40, "Fracture": 40, "Pneumonia": 40}
    assert len(best["notes"]) == 1 and "No reports passed" in best["notes"][0]


def test_equal_texts_are_one_candidate(tmp_path):
    distinct = np.random.default_rng(0).normal(size=(4, 8))
    repeated = np.concatenate([distinct, distinct])
    np.savez(
        tmp_path / "e.npz", image=repeated, text=repeated, texts=["Clear.", "a", "b", "c", "clear", "A", "b.", "c"]
    )
    result = evaluated(["external-embeddings", "--embeddings", str(tmp_path / "e.npz")], tmp_path / "o.json")
    assert result["metrics"]["retrieval.image_to_text_r1"] == result["metrics"]["retrieval.text_to_image_r1"] == 1
    assert result["details"]["retrieval"]["distinct_reports"] == 4
    assert result["samples"]["groups"]["retrieval-texts"]["count"] == 4


def test_invalid_embeddings_give_one_error_line(tmp_path, capsys):
    good = np.random.default_rng(0).normal(size=(5, 3))
    with_nan = good.copy()
    with_nan[2, 1] = np.nan
    for arrays, text in [
        ({"image": good}, "text"),
        ({"image": good, "text": good[:4]}, "(5, 3), text (4, 3)"),
        ({"image": good[0], "text": good[0]}, "(N, D)"),
        ({"image": good[:1], "text": good[:1]}, "N of 2 or more"),
        ({"image": with_nan, "text": good}, "finite"),
        ({"image": good, "text": np.ones((5, 3), dtype=int)}, "int64"),
        ({"image": good * 0, "text": good}, "zeros"),
        ({"image": good, "text": good, "ids": np.arange(4)}, "(4,)"),
        ({"image": good, "text": good, "ids": np.zeros(5, dtype=int)}, "more than once"),
        ({"image": good, "text": good, "labels": np.arange(5)}, "labels"),
        ({"image": good, "text": good, "texts": np.array(["a"] * 5)}, "one report"),
        ({"image": good, "text": good, "texts": np.array([None] * 5)}, "pickle"),
    ]:
        np.savez(tmp_path / "e.npz", **arrays)
        code, line = refusal(
            ["external-embeddings", "--embeddings", str(tmp_path / "e.npz"), "--out", str(tmp_path / "o.json")],
            capsys,
        )
        assert code == 1 and text in line, line
    (tmp_path / "text.npz").write_text("no arrays")
    for name in ("text.npz", "absent.npz"):
        argv = ["external-embeddings", "--embeddings", str(tmp_path / name), "--out", str(tmp_path / "o.json")]
        assert refusal(argv, capsys)[0] == 1


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["external-reports", "--help"], "study_id,report"),
        (["external-images", "--help"], "subfolder"),
        (["external-embeddings", "--help"], "image (N, D)"),
        (["compare", "--help"], "paired bootstrap"),
    ],
)
def test_help_describes_the_input_format(argv, text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    shown = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and text in shown and "--out" in shown
