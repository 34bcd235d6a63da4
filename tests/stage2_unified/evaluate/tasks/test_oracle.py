"""An oracle is at the ceiling of every task, and an oracle of other studies is at chance."""

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
from medunifier.stage2_unified.evaluate.tasks.retrieval import draw_unlike, evaluate_retrieval
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
    assert all(best[f"retrieval.{way}_r1"] == 1 for way in ("image_to_text", "text_to_image"))
    assert best["matching.auroc"] == best["matching.accuracy"] == 1
    # The matching head knows the truth: what stands among the first twenty it brings to the top.
    again = evaluate_retrieval(EvaluationContext(oracle, data, rerank=20)).metrics
    assert again["retrieval.reranked_image_to_text_r1"] == again["retrieval.reranked_text_to_image_r1"] == 1
    worst = evaluate_retrieval(EvaluationContext(shuffled, data)).metrics
    for way in ("image_to_text", "text_to_image"):
        name = f"retrieval.{way}_r10"
        assert worst[name] == pytest.approx(worst[f"{name}.baseline"], abs=0.15)
    assert worst["matching.auroc"] == pytest.approx(0.5, abs=0.1)


def test_reports(image_data, oracle, shuffled):
    result = evaluate_reports(EvaluationContext(oracle, image_data))
    best = result.metrics
    assert best["reports.bleu4"] == best["reports.rouge_l"] == 1
    # The labels are read from the very text that is written, so only the labeller itself could lose anything.
    assert best["reports.clinical_f1_micro"] >= 0.99 and best["reports.clinical_f1_macro"] >= 0.99
    assert (
        best["reports.clinical_f1_micro"]
        == result.details["labels_of_the_reference_text"]["reports.clinical_f1_micro"]
    )
    worst = evaluate_reports(EvaluationContext(shuffled, image_data)).metrics
    # Reports of other patients have the right frequencies and know nothing: no better than the best constant.
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


def test_prompts_stand_in_a_section_that_the_model_reads(image_data, studies):
    asked = []

    class ReadsImpressions(Oracle):
        def embed_texts(self, reports):
            asked.extend(reports)
            return super().embed_texts([{"findings": row["impression"], "impression": ""} for row in reports])

    result = evaluate_zero_shot(EvaluationContext(ReadsImpressions(studies, sections="impression"), image_data))
    assert image_data.sections == "findings+impression" and result.metrics["zero_shot.auroc"] == 1
    assert all(row["impression"] and not row["findings"] for row in asked)


def test_finetune(image_data, oracle, shuffled):
    # The probe alone; the whole network is the matter of test_judge_finetune.py.
    best = evaluate_finetune(EvaluationContext(oracle, image_data, finetune=FineTuning(steps=0))).metrics
    assert best["finetune.linear_auroc_100"] == 1
    assert best["finetune.linear_auroc_1"] < best["finetune.linear_auroc_100"]
    worst = evaluate_finetune(EvaluationContext(shuffled, image_data, finetune=FineTuning(steps=0))).metrics
    assert worst["finetune.linear_auroc_100"] == pytest.approx(0.5, abs=0.12)


class NamesWhatItSees:
    """Stands for the trained classifier: it knows the findings of every phantom by its pixels."""

    def __init__(self, studies, findings):
        self.findings = findings
        self.known = {pixels.tobytes(): info["labels"] for pixels, info in studies}

    def __call__(self, images):
        pixels = (images * 255).round().astype(np.uint8)
        return np.nan_to_num(truth_matrix([self.known[image.tobytes()] for image in pixels], self.findings))


def test_synthesis(image_data, oracle, shuffled, studies, monkeypatch):
    judge = {}

    def build(images, truth, steps, seed):
        # Only real training images may teach the judge.
        assert len(images) == len(truth) == sum(info["split"] == "train" for _, info in studies)
        return lambda drawn: judge["it"](drawn)

    monkeypatch.setattr(synthesis, "FindingClassifier", build)
    train = [info["labels"] for _, info in studies if info["split"] == "train"]
    test = [info["labels"] for _, info in studies if info["split"] == "test"]
    judged = [
        name
        for name in OBSERVATIONS
        if min((truth_matrix(train, [name]) == value).sum() for value in (0, 1)) >= synthesis.LEAST_POSITIVES
        and {0, 1} <= set(truth_matrix(test, [name])[:, 0].tolist())
    ]
    judge["it"] = NamesWhatItSees(studies, judged)
    options = {"variety_prompts": 3, "variety_images": 2}
    best = evaluate_synthesis(EvaluationContext(oracle, image_data, **options))
    assert list(best.details["positives"]) == judged
    assert best.metrics["synthesis.label_auroc"] == best.metrics["synthesis.label_auroc.real"] == 1
    # Who draws the real images themselves is at the ceiling of every distance, too.
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
    with pytest.raises(UserError, match="give the image shards"):
        evaluate_synthesis(EvaluationContext(oracle, EvaluationData(str(token_shards), FakeTokenizer())))


def test_wrong_pairs_have_another_text():
    ids = np.array([0, 0, 0, 1, 2, 2])
    drawn = np.array([draw_unlike(ids, seed) for seed in range(50)])
    assert (ids[drawn] != ids).all()
    assert set(drawn[:, 3]) == {0, 1, 2, 4, 5}


def test_one_text_for_all_is_refused(studies, tmp_path):
    same = {"findings": "Clear.", "impression": "", "text": "Clear."}
    normal = [(pixels, info | {"report": same}) for pixels, info in studies[:40]]
    data = EvaluationData(str(write_shards(tmp_path, normal)), FakeTokenizer())
    with pytest.raises(UserError, match="share one report"):
        evaluate_retrieval(EvaluationContext(Oracle(normal), data))


def test_no_finding_with_both_classes_is_refused(studies, tmp_path):
    silent = [(pixels, info | {"labels": {}}) for pixels, info in studies[:40]]
    data = EvaluationData(str(write_shards(tmp_path, silent)), FakeTokenizer())
    with pytest.raises(UserError, match="both present and absent"):
        evaluate_zero_shot(EvaluationContext(Oracle(silent), data))


def test_reports_without_a_train_split_have_no_baseline(studies, tmp_path):
    alone = [(pixels, info) for pixels, info in studies if info["split"] == "test"]
    data = EvaluationData(str(write_shards(tmp_path, alone)), FakeTokenizer())
    metrics = evaluate_reports(EvaluationContext(Oracle(alone), data)).metrics
    assert metrics["reports.bleu4"] == 1 and not any(name.endswith(".baseline") for name in metrics)


class Reciter(Oracle):
    """An oracle that returns training images for every prompt."""

    def draw(self, reports, views, **sampling):
        train = [pixels for pixels, info in self.studies if info["split"] == "train"]
        return np.stack([code_of(train[i % 7]) for i in range(len(reports))])


def test_copied_training_images_are_detected(image_data, studies, monkeypatch):
    monkeypatch.setattr(
        synthesis, "FindingClassifier", lambda images, truth, *_: lambda drawn: np.zeros((len(drawn), truth.shape[1]))
    )
    result = evaluate_synthesis(EvaluationContext(Reciter(studies), image_data, variety_prompts=0))
    figures = result.metrics
    assert figures["synthesis.nearest_train"] < 1e-3 < figures["synthesis.nearest_train.baseline"]
    assert figures["synthesis.copied"] == 1
    assert figures["synthesis.recall"] < 0.2
    assert result.details["nearest_pairs"][0]["distance"] < 1e-3


# Denies what is there, and states a finding that phantoms never have.
FLIPPED = {"findings": "No acute cardiopulmonary abnormality. There is pleural thickening.", "impression": ""}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_findings_flipped_in_a_known_fraction_of_reports_move_f1_by_the_computed_amount(image_data, studies, share):
    oracle = Oracle(studies)
    judged = image_data.studies("test", 0)
    sick = [i for i, labels in enumerate(judged.labels) if 1 in (v for k, v in labels.items() if k != "No Finding")]
    flipped = set(sick[: round(share * len(sick))])
    truthful = oracle.write_reports(image_data.codes("test", judged), judged.views)
    liar = dict(enumerate(truthful)) | dict.fromkeys(flipped, FLIPPED)
    oracle.write_reports = lambda codes, views: [liar[i] for i in range(len(codes))]
    got = evaluate_reports(EvaluationContext(oracle, image_data, limit=0)).metrics["reports.clinical_f1_micro"]

    # Counted by hand: a flip loses the report's hits, and adds one false alarm.
    def stated(labels):
        return {name for name, value in labels.items() if value in (1, -1)}

    said = [stated(label_report(report_line(report))) for report in truthful]
    true = [stated(labels) for labels in judged.labels]
    left = [i for i in range(len(judged)) if i not in flipped]
    hits = sum(len(said[i] & true[i]) for i in left)
    stated_in_all = sum(len(said[i]) for i in left) + len(flipped)
    assert not any("Pleural Other" in findings for findings in true)
    assert got == pytest.approx(2 * hits / (stated_in_all + sum(map(len, true))))


def test_the_rows_kept_beside_a_result_give_its_figures(image_data, oracle):
    for judge in (evaluate_retrieval, evaluate_zero_shot, evaluate_reports, evaluate_finetune):
        result = judge(EvaluationContext(oracle, image_data, limit=30, finetune=FineTuning(steps=2)))
        assert result.samples
        for samples in result.samples.values():
            assert len(samples.ids) == len(samples.patients) == len(set(samples.ids))
            for name, value in samples.values().items():
                assert result.metrics[name] == pytest.approx(value, nan_ok=True)


def test_precision_by_class_is_that_of_studies_with_one_finding(image_data, oracle):
    result = evaluate_retrieval(EvaluationContext(oracle, image_data, limit=0, label_set="Cardiomegaly,Pneumothorax"))
    classes = result.details["classes"]
    labels = image_data.studies("test", 0).labels
    alone = [row for row in labels if row.get("Cardiomegaly") == 1 and row.get("Pneumothorax", 0) == 0]
    assert classes["Cardiomegaly"] == len(alone) and set(classes) == {"Cardiomegaly", "Pneumothorax"}
    column = result.samples["retrieval-images"].columns["retrieval.image_to_text_p5"]
    assert np.isfinite(column).sum() == sum(classes.values())
