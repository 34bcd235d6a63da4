"""The evaluate command: output files, recorded data and versions, and errors."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medunifier.shared.artifacts import write_json
from medunifier.shared.command import run_command
from medunifier.shared.errors import UsageError, UserError
from medunifier.shared.metrics.samples import load_samples
from medunifier.shared.report_page.page import PHANTOM
from medunifier.stage1_tokenizer.config import model_config
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage2_unified.evaluate import command
from medunifier.stage2_unified.evaluate.classifiers.heads import FineTuning
from medunifier.stage2_unified.evaluate.command import EvaluateConfig, evaluate, main
from medunifier.stage2_unified.evaluate.results import files as result_files
from medunifier.stage2_unified.evaluate.results.pictures import save_pictures
from medunifier.stage2_unified.evaluate.results.result import TaskResult, defined
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from medunifier.stage2_unified.evaluate.tasks import synthesis
from tests.stage1_tokenizer.conftest import TINY_TOKENIZER
from tests.stage2_unified.evaluate.phantom_oracle import SIZE, FakeTokenizer, Oracle, write_shards

REQUIRED = (
    "retrieval.image_to_text_r10",
    "retrieval.text_to_image_r10",
    "matching.auroc",
    "reports.clinical_f1_micro",
    "synthesis.label_auroc",
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen") / "tokenizer"
    FrozenTokenizer(VQGAN(model_config(TINY_TOKENIZER))).save(folder)
    return folder


def test_partial_files_of_a_killed_evaluation_are_removed(image_shards, tmp_path):
    out = tmp_path / "r.json"
    partial = [tmp_path / f".partial-1-{name}" for name in ("r.json", "r.html", "r-reports.csv", "r-samples.npz")]
    other = tmp_path / ".partial-1-others.json"

    def leave_partial_files():
        for path in (*partial, other):
            path.write_text("half")
        (tmp_path / ".partial-1-r-pictures").mkdir()

    leave_partial_files()
    config = EvaluateConfig(model="m", data=str(image_shards), out=str(out), split="absent")
    with pytest.raises(UserError, match="absent"):
        evaluate("reports", config, FakeTokenizer(), None, "")
    assert list(tmp_path.iterdir()) == [other]  # of another evaluation, which removes it itself
    leave_partial_files()
    data = EvaluationData(str(image_shards), FakeTokenizer(), 0).describe("test", {})
    options = {"task": "reports", "data": data, "model": {}, "command": "", "seed": 0, "bootstrap": 2}
    result_files.write_result(out, results={}, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "r-pictures", "r.html", "r.json"]


def test_all_tasks_are_written_to_one_result_and_one_page(studies, image_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(
        command, "evaluate_tokenizer_task", lambda *_: TaskResult({"tokenizer.psnr": 30.0}, {"examples": []})
    )
    monkeypatch.setattr(
        synthesis,
        "FindingClassifier",
        lambda images, truth, *_: lambda generated: generated.mean((1, 2))[:, None] * np.ones(truth.shape[1]),
    )
    out = tmp_path / "sub" / "all.json"
    options = {"limit": 30, "bootstrap": 40, "finetune": FineTuning(steps=2)}
    config = EvaluateConfig(model="m", data=str(image_shards), out=str(out), **options)
    evaluate("all", config, FakeTokenizer(), Oracle(studies), "medunifier evaluate all")
    result = json.loads(out.read_text())
    for name in REQUIRED:
        assert np.isfinite(result["metrics"][name]) and np.isfinite(result["metrics"][f"{name}.baseline"])
    assert result["skipped"] == {} and list(result["details"]) == list(command.TASKS)
    assert result["data"]["source"] == "phantom" and len(result["data"]["manifest_sha256"]) == 64
    assert (
        result["data"]["evaluated"]["retrieval"]["studies"]
        == len(result["data"]["evaluated"]["retrieval"]["ids"])
        == 30
    )
    assert result["model"] == {"tokenizer": "f" * 64, "model": "e" * 64, "sections": "findings+impression"}
    intervals = {name: bounds for row in result["details"].values() for name, bounds in row["intervals"].items()}
    for name in REQUIRED:
        low, high = intervals[name]
        assert low <= result["metrics"][name] <= high
    assert result["details"]["synthesis"]["feature_net"]["sha256"] and result["bootstrap"]["by"] == "patient"
    assert result["data"]["transform"] == {"text": "findings+impression", "size": SIZE, "bits": 8}
    assert {"torch", "scipy", "nltk", "medunifier"} <= result["versions"].keys()
    samples = load_samples(out.parent, result["samples"])
    assert samples["reports"].value("reports.bleu4") == result["metrics"]["reports.bleu4"]
    with open(out.parent / result["reports"], newline="") as file:
        assert [row["study_id"] for row in csv.DictReader(file)] == result["data"]["evaluated"]["reports"]["ids"]
    page = out.with_suffix(".html").read_text()
    assert PHANTOM in page and all(name in page for name in REQUIRED)
    assert (
        "AUROC by finding" in page
        and 'class="model"' in page
        and "METEOR" not in page
        and "--scorers.wordnet" in page
    )
    generated = Image.open(tmp_path / "sub" / "all-pictures" / "synthesis-generated-0.png")
    assert generated.info["Source"] == "synthetic"
    assert "Source" not in Image.open(tmp_path / "sub" / "all-pictures" / "synthesis-real-0.png").info


def test_token_shards_skip_tasks_that_need_images(studies, token_shards, tmp_path):
    options = {"limit": 30, "bootstrap": 5, "finetune": FineTuning(steps=2)}
    config = EvaluateConfig(model="m", data=str(token_shards), out=str(tmp_path / "a.json"), **options)
    result = evaluate("all", config, FakeTokenizer(), Oracle(studies), "")
    assert set(result["skipped"]) == {"tokenizer", "synthesis"}
    assert {"retrieval", "zero-shot", "reports", "finetune"} == set(result["details"])


def test_a_frozen_tokenizer_is_evaluated_alone(image_shards, tokenizer_folder, tmp_path, capsys):
    out = tmp_path / "tokenizer.json"
    main(
        ["tokenizer", "--model", str(tokenizer_folder), "--data", str(image_shards), "--out", str(out),
         "--classifier_steps", "20", "--bootstrap", "5"]
    )  # fmt: skip
    metrics = json.loads(out.read_text())["metrics"]
    assert {"tokenizer.psnr", "tokenizer.codebook_usage"} <= {
        n.removesuffix(".baseline") for n in metrics if "baseline" in n
    }
    assert metrics["tokenizer.codebook_usage.baseline"] == 1 / 32
    assert "tokenizer.psnr" in capsys.readouterr().out and "data:image/png" in out.with_suffix(".html").read_text()


def refusal(argv, capsys):
    """Return the exit code and the one line on standard error."""
    code = run_command(main, argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return code, lines[0]


def test_invalid_arguments_give_one_error_line(
    image_shards, token_shards, tokenizer_folder, studies, tmp_path, capsys
):
    out = ["--out", str(tmp_path / "o.json")]
    model, data = ["--model", str(tokenizer_folder)], ["--data", str(image_shards)]
    for argv, code, text in [
        (["draw"], 2, "tokenizer, retrieval, zero-shot, reports, synthesis, finetune, all"),
        ([], 2, "TASK"),
        (["retrieval", *model, *data, *out], 1, "is a frozen tokenizer: the task retrieval needs a model folder"),
        (["tokenizer", "--model", str(tmp_path / "none"), *data, *out], 1, "not found"),
        (["retrieval", "--model", str(tmp_path), *data, *out], 1, "model folder"),
        (["tokenizer", *model, "--data", str(tmp_path), *out], 1, "shard folder"),
        (["tokenizer", *model, *data, *out, "--split", "holdout"], 1, "holdout"),
        (["tokenizer", *model, *data, "--out", "o.txt"], 2, "NAME.json"),
        (["tokenizer", *model, *data, *out, "--limits", "3"], 2, "limits"),
        (["tokenizer", *model, *data, *out, "--limit", "-1"], 2, "limit"),
    ]:
        got, line = refusal(argv, capsys)
        assert (got, text in line) == (code, True), line
    assert not (tmp_path / "o.json").exists()


def test_an_interrupted_evaluation_says_that_it_starts_anew(
    image_shards, tokenizer_folder, tmp_path, capsys, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate", interrupt)
    arguments = ["tokenizer", "--model", str(tokenizer_folder), "--data", str(image_shards)]
    assert run_command(main, [*arguments, "--out", str(tmp_path / "result.json")]) == 130
    error = capsys.readouterr().err
    assert "result.json was not written" in error and error.count("\n") == 1


def test_data_without_reports_are_refused(studies, tmp_path):
    empty = {"findings": "", "impression": "", "text": ""}
    silent = [(pixels, info | {"report": empty}) for pixels, info in studies[:40]]
    config = EvaluateConfig(model="m", data=str(write_shards(tmp_path / "d", silent)), out=str(tmp_path / "o.json"))
    with pytest.raises(UserError, match="a report"):
        evaluate("reports", config, FakeTokenizer(), Oracle(silent), "")


def test_metrics_that_are_not_finite_are_listed_as_undefined():
    assert defined({"a": 1.0, "b": float("nan"), "c": float("inf")}) == ({"a": 1.0}, ["b", "c"])


def test_image_names_cannot_leave_their_folder(tmp_path):
    with pytest.raises(ValueError, match="no file stem"):
        save_pictures(tmp_path / "p", {"../x": np.zeros((2, 2))})
    assert not list(tmp_path.iterdir())


def test_generated_images_and_reconstructions_carry_their_notices(tmp_path):
    save_pictures(tmp_path, {name: np.zeros((2, 2)) for name in ("a-generated-0", "a-reconstruction-0", "a-real-0")})
    notices = [Image.open(tmp_path / f"a-{name}-0.png").info for name in ("generated", "reconstruction", "real")]
    assert "shows no patient" in notices[0]["Comment"] and notices[1]["Source"] == "synthetic" and not notices[2]
    assert "may be a patient's" in notices[1]["Comment"] and "no patient" not in notices[1]["Comment"]


def test_out_must_be_json():
    with pytest.raises(UsageError):
        main(["all", "--model", "m", "--data", "d", "--out", "x"])


def test_the_json_is_written_last(tmp_path, studies, image_shards, monkeypatch):
    def full_disk(path, value):
        raise UserError("cannot write")

    monkeypatch.setattr(result_files, "write_json", full_disk)
    config = EvaluateConfig(model="m", data=str(image_shards), out=str(tmp_path / "o.json"), limit=20, bootstrap=2)
    with pytest.raises(UserError, match="cannot write"):
        evaluate("zero-shot", config, FakeTokenizer(), Oracle(studies), "")
    assert not (tmp_path / "o.json").exists()
    monkeypatch.setattr(result_files, "write_json", write_json)
    evaluate("zero-shot", config, FakeTokenizer(), Oracle(studies), "")
    assert (tmp_path / "o.json").exists()


def run(studies, shards, out, trained_on, task="reports", sections=None):
    config = EvaluateConfig("m", str(shards), str(out), limit=20, bootstrap=2, sections=sections)
    return evaluate(task, config, FakeTokenizer(), Oracle(studies, sections=trained_on), "")


def test_sections_that_the_model_was_not_trained_on_are_refused_unless_requested(studies, image_shards, tmp_path):
    out = tmp_path / "o.json"
    with pytest.raises(UserError, match="--sections findings"):
        run(studies, image_shards, out, "findings")
    assert not out.exists()
    matching = run(studies, image_shards, out, "findings", sections="findings")
    assert matching["notes"] == [] and matching["data"]["sections"] == "findings"
    other = run(studies, image_shards, out, "findings", sections="findings+impression")
    assert "findings+impression" in other["notes"][0]
    assert other["notes"][0] in out.with_suffix(".html").read_text()
    assert run(studies, image_shards, out, "findings", task="zero-shot")["notes"] == []  # needs no reports


def test_exactly_the_listed_ids_are_evaluated(studies, image_shards, tmp_path):
    ids = [info["study_id"] for _, info in studies if info["split"] == "test"][:25]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    config = EvaluateConfig("m", str(image_shards), str(tmp_path / "o.json"), limit=5, bootstrap=2)
    config = replace(config, ids=str(tmp_path / "ids.txt"))
    result = evaluate("reports", config, FakeTokenizer(), Oracle(studies), "")
    assert sorted(result["data"]["evaluated"]["reports"]["ids"]) == sorted(ids)
    (tmp_path / "ids.txt").write_text("unknown")
    with pytest.raises(UserError, match="1 of the 1.*test"):
        evaluate("reports", config, FakeTokenizer(), Oracle(studies), "")
    (tmp_path / "ids.json").write_text('{"names": []}')
    with pytest.raises(UserError, match='has no "ids"'):
        command.read_ids(str(tmp_path / "ids.json"))
