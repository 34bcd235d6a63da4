"""An oracle reaches the ceiling of every task, and an oracle of other patients is at chance."""

import numpy as np
import pytest

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.auroc import truth_matrix
from medunifier.stage2_unified.evaluate.classifiers.heads import FineTuning
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData, report_line
from medunifier.stage2_unified.evaluate.tasks import synthesis
from medunifier.stage2_unified.evaluate.tasks.finetune import evaluate_finetune
from medunifier.stage2_unified.evaluate.tasks.reports import evaluate_reports
from medunifier.stage2_unified.evaluate.tasks.retrieval import evaluate_retrieval, sample_negatives
from medunifier.stage2_unified.evaluate.tasks.synthesis import evaluate_synthesis
from medunifier.stage2_unified.evaluate.tasks.zero_shot import evaluate_zero_shot
from tests.stage2_unified.evaluate.phantom_oracle import FakeTokenizer, Oracle, code_of, write_shards


@pytest.fixture(params=["image_shards", "token_shards"])
def data(request):
    return EvaluationData(str(request.getfixturevalue(request.param)), FakeTokenizer())


@pytest.fixture
def oracle(studies):
    return Oracle(studies)


@pytest.fixture
def shuffled(studies):
    return Oracle(studies, shuffled=True)


def test_retrieval(data, oracle, shuffled):
    best = evaluate_retrieval(EvaluationContext(oracle, data)).metrics
    assert all(best[f"retrieval.{direction}_r1"] == 1 for direction in ("image_to_text", "text_to_image"))
    assert best["matching.auroc"] == best["matching.accuracy"] == 1
    # The matching head is exact: it ranks any match among the first twenty at the top.
    reranked = evaluate_retrieval(EvaluationContext(oracle, data, rerank=20)).metrics
    assert reranked["retrieval.reranked_image_to_text_r1"] == 1
    assert reranked["retrieval.reranked_text_to_image_r1"] == 1
    worst = evaluate_retrieval(EvaluationContext(shuffled, data)).metrics
    for direction in ("image_to_text", "text_to_image"):
        name = f"retrieval.{direction}_r10"
        assert worst[name] == pytest.approx(worst[f"{name}.baseline"], abs=0.15)
    assert worst["matching.auroc"] == pytest.approx(0.5, abs=0.1)


def test_reports(image_data, oracle, shuffled):
    result = evaluate_reports(EvaluationContext(oracle, image_data))
    best = result.metrics
    assert best["reports.bleu4"] == best["reports.rouge_l"] == 1
    # The labels come from the generated text itself, so only the labeller could lose any.
    assert best["reports.clinical_f1_micro"] >= 0.99 and best["reports.clinical_f1_macro"] >= 0.99
    assert (
        best["reports.clinical_f1_micro"]
        == result.details["labels_of_the_reference_text"]["reports.clinical_f1_micro"]
    )
    worst = evaluate_reports(EvaluationContext(shuffled, image_data)).metrics
    # Reports of other patients have the right frequencies alone: no better than the best constant.
    assert worst["reports.clinical_f1_micro"] <= worst["reports.clinical_f1_micro.baseline"] + 0.05
    assert {"reports.clinical_f1_macro_5_uncertain_negative", "reports.cider.baseline"} <= best.keys()


@pytest.mark.parametrize("style", ["sentence", "chexzero"])
def test_zero_shot(image_data, oracle, shuffled, style):
    best = evaluate_zero_shot(EvaluationContext(oracle, image_data, prompts=style)).metrics
    for name in ("auroc", "f1_macro", "accuracy", "accuracy_exclusive"):
        assert best[f"zero_shot.{name}"] == 1 > best[f"zero_shot.{name}.baseline"]
    assert evaluate_zero_shot(EvaluationContext(shuffled, image_data)).metrics["zero_shot.auroc"] == pytest.approx(
        0.5, abs=0.1
    )


def test_matching_of_prompts_is_evaluated_for_a_model_trained_with_statements(image_data, studies, shuffled):
    class Trained(Oracle):
        statements = True

    best = evaluate_zero_shot(EvaluationContext(Trained(studies), image_data)).metrics
    assert best["zero_shot.matching_auroc"] == 1
    assert best["zero_shot.match_agreed"] > 0.9 and best["zero_shot.match_contradicted"] < 0.1
    worst = evaluate_zero_shot(EvaluationContext(Trained(studies, shuffled=True), image_data)).metrics
    assert worst["zero_shot.matching_auroc"] == pytest.approx(0.5, abs=0.1)
    assert "zero_shot.matching_auroc" not in evaluate_zero_shot(EvaluationContext(shuffled, image_data)).metrics


def test_prompts_are_placed_in_a_section_that_the_model_was_trained_on(image_data, studies):
    embedded = []

    class ImpressionOracle(Oracle):
        def embed_texts(self, reports):
            embedded.extend(reports)
            return super().embed_texts([{"findings": row["impression"], "impression": ""} for row in reports])

    result = evaluate_zero_shot(EvaluationContext(ImpressionOracle(studies, sections="impression"), image_data))
    assert image_data.sections == "findings+impression" and result.metrics["zero_shot.auroc"] == 1
    assert all(row["impression"] and not row["findings"] for row in embedded)


def test_finetune(image_data, oracle, shuffled):
    # The linear probe alone; test_finetune.py covers full fine-tuning.
    best = evaluate_finetune(EvaluationContext(oracle, image_data, finetune=FineTuning(steps=0))).metrics
    assert best["finetune.linear_auroc_100"] == 1
    assert best["finetune.linear_auroc_1"] < best["finetune.linear_auroc_100"]
    worst = evaluate_finetune(EvaluationContext(shuffled, image_data, finetune=FineTuning(steps=0))).metrics
    assert worst["finetune.linear_auroc_100"] == pytest.approx(0.5, abs=0.12)


class PerfectClassifier:
    """Replace the trained classifier: look up the findings of a phantom by its pixels."""

    def __init__(self, studies, findings):
        self.findings = findings
        self.known = {pixels.tobytes(): info["labels"] for pixels, info in studies}

    def __call__(self, images):
        pixels = (images * 255).round().astype(np.uint8)
        return np.nan_to_num(truth_matrix([self.known[image.tobytes()] for image in pixels], self.findings))


def test_synthesis(image_data, oracle, shuffled, studies, monkeypatch):
    classifier = {}

    def build(images, truth, steps, seed):
        # The classifier is trained on real training images only.
        assert len(images) == len(truth) == sum(info["split"] == "train" for _, info in studies)
        return lambda images: classifier["it"](images)

    monkeypatch.setattr(synthesis, "FindingClassifier", build)
    train = [info["labels"] for _, info in studies if info["split"] == "train"]
    test = [info["labels"] for _, info in studies if info["split"] == "test"]
    evaluated = [
        name
        for name in OBSERVATIONS
        if min((truth_matrix(train, [name]) == value).sum() for value in (0, 1)) >= synthesis.LEAST_POSITIVES
        and {0, 1} <= set(truth_matrix(test, [name])[:, 0].tolist())
    ]
    classifier["it"] = PerfectClassifier(studies, evaluated)
    options = {"variety_prompts": 3, "variety_images": 2}
    best = evaluate_synthesis(EvaluationContext(oracle, image_data, **options))
    assert list(best.details["positives"]) == evaluated
    assert best.metrics["synthesis.label_auroc"] == best.metrics["synthesis.label_auroc.real"] == 1
    # The oracle generates the real images themselves, so every distance is at its best value.
    figures = best.metrics
    assert figures["synthesis.fid"] < 1e-6 < figures["synthesis.fid.baseline"] and figures["synthesis.kid"] <= 0
    assert all(figures[f"synthesis.{name}"] == 1 for name in ("precision", "recall", "coverage"))
    assert figures["synthesis.ms_ssim_within"] == pytest.approx(1, abs=1e-5)
    assert figures["synthesis.nearest_train"] == pytest.approx(figures["synthesis.nearest_train.baseline"], rel=1e-3)
    assert figures["synthesis.ms_ssim_within.baseline"] < 0.99
    worst = evaluate_synthesis(EvaluationContext(shuffled, image_data, **options)).metrics
    assert worst["synthesis.label_auroc"] == pytest.approx(0.5, abs=0.12)
    assert worst["synthesis.label_auroc.real"] == 1


def test_synthesis_needs_real_images(token_shards, oracle):
    with pytest.raises(UserError, match="pass the image shards"):
        evaluate_synthesis(EvaluationContext(oracle, EvaluationData(str(token_shards), FakeTokenizer())))


def test_negative_pairs_have_different_reports():
    ids = np.array([0, 0, 0, 1, 2, 2])
    negatives = np.array([sample_negatives(ids, seed) for seed in range(50)])
    assert (ids[negatives] != ids).all()
    assert set(negatives[:, 3]) == {0, 1, 2, 4, 5}


def test_retrieval_among_identical_reports_is_refused(studies, tmp_path):
    same = {"findings": "Clear.", "impression": "", "text": "Clear."}
    normal = [(pixels, info | {"report": same}) for pixels, info in studies[:40]]
    data = EvaluationData(str(write_shards(tmp_path, normal)), FakeTokenizer())
    with pytest.raises(UserError, match="share one report"):
        evaluate_retrieval(EvaluationContext(Oracle(normal), data))


def test_labels_of_one_class_are_refused(studies, tmp_path):
    unlabelled = [(pixels, info | {"labels": {}}) for pixels, info in studies[:40]]
    data = EvaluationData(str(write_shards(tmp_path, unlabelled)), FakeTokenizer())
    with pytest.raises(UserError, match="both present and absent"):
        evaluate_zero_shot(EvaluationContext(Oracle(unlabelled), data))


def test_reports_without_a_train_split_have_no_baseline(studies, tmp_path):
    test_only = [(pixels, info) for pixels, info in studies if info["split"] == "test"]
    data = EvaluationData(str(write_shards(tmp_path, test_only)), FakeTokenizer())
    metrics = evaluate_reports(EvaluationContext(Oracle(test_only), data)).metrics
    assert metrics["reports.bleu4"] == 1 and not any(name.endswith(".baseline") for name in metrics)


class CopyingOracle(Oracle):
    """An oracle that returns training images for every prompt."""

    def draw(self, reports, views, **sampling):
        train = [pixels for pixels, info in self.studies if info["split"] == "train"]
        return np.stack([code_of(train[i % 7]) for i in range(len(reports))])


def test_copied_training_images_are_detected(image_data, studies, monkeypatch):
    monkeypatch.setattr(
        synthesis,
        "FindingClassifier",
        lambda _, truth, *__: lambda images: np.zeros((len(images), truth.shape[1])),
    )
    result = evaluate_synthesis(EvaluationContext(CopyingOracle(studies), image_data, variety_prompts=0))
    figures = result.metrics
    assert figures["synthesis.nearest_train"] < 1e-3 < figures["synthesis.nearest_train.baseline"]
    assert figures["synthesis.copied"] == 1
    assert figures["synthesis.recall"] < 0.2
    assert result.details["nearest_pairs"][0]["distance"] < 1e-3


# Negates the findings that are present, and states one that phantoms never have.
FLIPPED = {"findings": "No acute cardiopulmonary abnormality. There is pleural thickening.", "impression": ""}


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_flipped_findings_change_clinical_f1_by_the_computed_amount(image_data, studies, fraction):
    oracle = Oracle(studies)
    test = image_data.studies("test", 0)
    abnormal = [i for i, labels in enumerate(test.labels) if 1 in (v for k, v in labels.items() if k != "No Finding")]
    flipped = set(abnormal[: round(fraction * len(abnormal))])
    correct = oracle.write_reports(image_data.codes("test", test), test.views)
    written = dict(enumerate(correct)) | dict.fromkeys(flipped, FLIPPED)
    oracle.write_reports = lambda codes, views: [written[i] for i in range(len(codes))]
    got = evaluate_reports(EvaluationContext(oracle, image_data, limit=0)).metrics["reports.clinical_f1_micro"]

    # Expected value: a flip loses the report's hits and adds one false positive.
    def stated(labels):
        return {name for name, value in labels.items() if value in (1, -1)}

    predicted = [stated(label_report(report_line(report), "chexpert")) for report in correct]
    true = [stated(labels) for labels in test.labels]
    unchanged = [i for i in range(len(test)) if i not in flipped]
    hits = sum(len(predicted[i] & true[i]) for i in unchanged)
    predicted_positives = sum(len(predicted[i]) for i in unchanged) + len(flipped)
    assert not any("Pleural Other" in findings for findings in true)
    assert got == pytest.approx(2 * hits / (predicted_positives + sum(map(len, true))))


def test_saved_samples_reproduce_the_metrics(image_data, oracle):
    for evaluate_task in (evaluate_retrieval, evaluate_zero_shot, evaluate_reports, evaluate_finetune):
        result = evaluate_task(EvaluationContext(oracle, image_data, limit=30, finetune=FineTuning(steps=2)))
        assert result.samples
        for samples in result.samples.values():
            assert len(samples.ids) == len(samples.patients) == len(set(samples.ids))
            for name, value in samples.values().items():
                assert result.metrics[name] == pytest.approx(value, nan_ok=True)


def test_precision_by_class_uses_studies_with_one_finding(image_data, oracle):
    result = evaluate_retrieval(EvaluationContext(oracle, image_data, limit=0, label_set="Cardiomegaly,Pneumothorax"))
    classes = result.details["classes"]
    labels = image_data.studies("test", 0).labels
    exclusive = [row for row in labels if row.get("Cardiomegaly") == 1 and row.get("Pneumothorax", 0) == 0]
    assert classes["Cardiomegaly"] == len(exclusive) and set(classes) == {"Cardiomegaly", "Pneumothorax"}
    column = result.samples["retrieval-images"].columns["retrieval.image_to_text_p5"]
    assert np.isfinite(column).sum() == sum(classes.values())
