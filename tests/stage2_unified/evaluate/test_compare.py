"""Comparison of two results by a paired bootstrap; results that are not comparable are refused."""

import json

import numpy as np
import pytest

from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.evaluate.command import EvaluateConfig, evaluate, main
from medunifier.stage2_unified.evaluate.compare import compare
from tests.stage2_unified.evaluate.phantom_oracle import FakeTokenizer, Oracle, write_shards


@pytest.fixture(scope="module")
def results(studies, image_shards, tmp_path_factory):
    """Results of an oracle and a shuffled oracle on the same 40 studies, and results with other options."""
    folder = tmp_path_factory.mktemp("results")
    other_shards = write_shards(tmp_path_factory.mktemp("other"), studies[:400])

    def write(name, task, shards=image_shards, shuffled=False, **options):
        config = EvaluateConfig(
            "m", str(shards), str(folder / f"{name}.json"), bootstrap=2, **{"limit": 40} | options
        )
        evaluate(task, config, FakeTokenizer(), Oracle(studies, shuffled=shuffled), "")

    write("best", "reports")
    write("worst", "reports", shuffled=True)
    write("data", "reports", shards=other_shards)
    write("split", "reports", split="validate")
    write("sections", "reports", sections="findings")
    write("seed", "reports", seed=1)
    write("size", "reports", limit=30)
    write("retrieval", "retrieval")
    write("shuffled-retrieval", "retrieval", shuffled=True)
    write("labels", "zero-shot", label_set="chexpert5")
    write("all-labels", "zero-shot")
    return folder


def test_the_better_result_is_found_and_values_match_the_results(results, capsys):
    out = results / "comparison.json"
    main(
        ["compare", str(results / "best.json"), str(results / "worst.json"), "--out", str(out), "--bootstrap", "200"]
    )
    content = json.loads(out.read_text())
    for name in ("reports.clinical_f1_micro", "reports.bleu4", "reports.rouge_l", "reports.cider"):
        row = content["figures"][name]
        for side, key in (("best", "a"), ("worst", "b")):
            assert row[key] == pytest.approx(json.loads((results / f"{side}.json").read_text())["metrics"][name])
        assert row["difference"] > 0 and row["interval"][0] > 0 and row["p"] == pytest.approx(2 / 201)
    shown = capsys.readouterr().out
    assert "reports.clinical_f1_micro" in shown and "95 % interval" in shown
    assert not content["not_tested"]


def test_a_result_does_not_differ_from_itself(results):
    found = compare(str(results / "best.json"), str(results / "best.json"), resamples=50)
    assert all(row["difference"] == 0 and row["p"] == 1 for row in found["figures"].values())


def test_retrieval_is_compared_on_images_texts_and_pairs(results):
    found = compare(str(results / "retrieval.json"), str(results / "shuffled-retrieval.json"), resamples=100)
    for name in ("retrieval.image_to_text_r1", "retrieval.text_to_image_r1", "matching.auroc"):
        assert found["figures"][name]["difference"] > 0.2 and found["figures"][name]["p"] < 0.05


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        ("best", "data", "data"),
        ("best", "split", "split"),
        ("best", "sections", "sections"),
        ("best", "seed", "40 in"),
        ("best", "size", "40 in"),
        ("best", "retrieval", "retrieval"),
        ("labels", "all-labels", "findings"),
    ],
)
def test_results_that_are_not_comparable_are_refused(results, a, b, text):
    with pytest.raises(UserError) as refusal:
        compare(str(results / f"{a}.json"), str(results / f"{b}.json"))
    assert text in str(refusal.value) and "\n" not in str(refusal.value)


def test_another_feature_net_is_refused(results, tmp_path):
    for name, net in (("a", "1" * 64), ("b", "2" * 64)):
        content = json.loads((results / "best.json").read_text())
        content["protocol"] = {"reports": {"feature_net": {"name": f"net {name}", "sha256": net}}}
        (results / f"net-{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="feature net.*net a.*net b"):
        compare(str(results / "net-a.json"), str(results / "net-b.json"))


def test_invalid_arguments_and_files_give_one_error_line(results, tmp_path, capsys):
    best = str(results / "best.json")
    (tmp_path / "empty.json").write_text("{}")
    content = json.loads((results / "best.json").read_text())
    (tmp_path / "moved.json").write_text(json.dumps(content))
    content.pop("samples")
    (tmp_path / "no-samples.json").write_text(json.dumps(content))
    content["data"].pop("evaluated")
    (tmp_path / "old.json").write_text(json.dumps(content))
    for argv, code, text in [
        (["compare", best], 2, "required: b"),
        (["compare", best, best, best], 2, "unrecognized"),
        (["compare", best, str(tmp_path / "none.json")], 1, "not found"),
        (["compare", best, str(tmp_path / "empty.json")], 1, "is no result of `medunifier evaluate`"),
        (["compare", best, str(tmp_path / "no-samples.json")], 1, "no scores by sample"),
        (["compare", best, str(tmp_path / "old.json")], 1, "data.evaluated"),
        (["compare", best, str(tmp_path / "moved.json")], 1, "must lie beside its result"),
        (["compare", best, best, "--bootstrap", "1"], 2, "bootstrap must be at least 2"),
    ]:
        assert run_command(main, argv) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and text in lines[0], lines


def test_undefined_metrics_are_listed_as_not_tested(results, monkeypatch):
    from medunifier.shared.metrics import samples

    monkeypatch.setitem(samples.KINDS, "bleu4", lambda *counts: float("nan"))
    found = compare(str(results / "best.json"), str(results / "worst.json"), resamples=10)
    assert found["not_tested"] == {"reports.bleu4": "it is undefined on one of the two"}
    assert np.isfinite([row["p"] for row in found["figures"].values()]).all()


def test_a_result_names_scores_of_its_own_folder_alone(results, tmp_path):
    content = json.loads((results / "best.json").read_text())
    outside = results / content["samples"]["file"]  # of the right checksum, elsewhere
    for name in (str(outside), f"../{outside.parent.name}/{outside.name}", 3, None):
        content["samples"]["file"] = name
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="names a file"):
            compare(str(tmp_path / "a.json"), str(tmp_path / "a.json"), resamples=2)
