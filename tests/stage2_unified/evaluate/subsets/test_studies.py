"""Evaluated studies: sampled by seed, with a frontal image and the evaluated sections, from matching shards."""

import numpy as np
import pytest

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData, with_both_classes
from tests.stage2_unified.evaluate.phantom_oracle import FakeTokenizer, code_of, write_shards


def test_a_subset_depends_on_the_seed_alone(image_shards):
    samples = [EvaluationData(str(image_shards), FakeTokenizer(), seed).studies("test", 20).ids for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    assert len(set(samples[0])) == 20


def test_limit_zero_and_a_high_limit_select_all(image_data):
    everything = image_data.studies("test").ids
    assert len(everything) == 60 and image_data.studies("test", 1000).ids == everything


def test_codes_and_images_belong_to_the_studies(image_data, token_shards, first_test_study):
    studies = image_data.studies("test")
    assert studies.ids[0] == first_test_study.key
    codes = image_data.codes("test", studies)
    assert (codes[0] == code_of(first_test_study.images[0])).all()
    assert (image_data.images("test", studies)[0] == np.float32(first_test_study.images[0] / 255)).all()
    stored = EvaluationData(str(token_shards), FakeTokenizer())
    assert (stored.codes("test", stored.studies("test")) == codes).all()


def variants(studies, **change):
    return [(pixels, info | change) for pixels, info in studies[:40]]


def test_studies_without_a_report_are_excluded_from_tasks_with_text(studies, tmp_path):
    empty = {"findings": "", "impression": " ", "text": ""}
    data = EvaluationData(str(write_shards(tmp_path, variants(studies, report=empty))), FakeTokenizer())
    assert len(data.studies("test", with_text=False)) == 4
    with pytest.raises(UserError, match="report"):
        data.studies("test")


def test_lateral_views_are_excluded_and_unknown_views_are_not(studies, tmp_path):
    lateral = write_shards(tmp_path / "lateral", variants(studies, views=["LL"]))
    with pytest.raises(UserError, match="frontal"):
        EvaluationData(str(lateral), FakeTokenizer()).studies("test")
    unknown = write_shards(tmp_path / "unknown", variants(studies, views=[""]))
    assert len(EvaluationData(str(unknown), FakeTokenizer()).studies("test")) == 4


def test_only_the_sections_of_the_manifest_are_evaluated(studies, tmp_path):
    root = write_shards(tmp_path, studies[:40])
    manifest = root / "manifest.json"
    manifest.write_text(manifest.read_text().replace("findings+impression", "impression"))
    evaluated = EvaluationData(str(root), FakeTokenizer()).studies("test")
    assert all(report["findings"] == "" and report["impression"] for report in evaluated.reports)


def test_codes_of_another_tokenizer_are_refused(token_shards):
    other = FakeTokenizer()
    other.fingerprint = "a" * 64
    with pytest.raises(UserError, match=r"ffffffffffff.*aaaaaaaaaaaa"):
        EvaluationData(str(token_shards), other)


def test_images_of_another_size_are_refused(image_shards):
    larger = FakeTokenizer()
    larger.image_size = 64
    data = EvaluationData(str(image_shards), larger)
    with pytest.raises(UserError, match=r"32 x 32.*--size 64"):
        data.codes("test", data.studies("test"))


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match="not found"):
        EvaluationData(str(tmp_path / "nowhere"), FakeTokenizer())


def test_the_most_frequent_report_is_returned_with_all_labels(studies, tmp_path):
    usual = {"findings": "Clear.", "impression": "Normal.", "text": "Clear. Normal."}
    changed = [(pixels, info | {"report": usual} if i % 2 else info) for i, (pixels, info) in enumerate(studies[:60])]
    labels, text = EvaluationData(str(write_shards(tmp_path, changed)), FakeTokenizer()).all_labels_and_texts("train")
    assert text == "Clear. Normal." and len(labels) == 48


def test_columns_with_both_classes():
    truth = np.array([[1, 0, np.nan], [0, 0, 1], [1, 0, 0]])
    assert with_both_classes(truth, ["a", "b", "c"]) == [0, 2]
    assert with_both_classes(np.vstack([truth, truth]), ["a", "b", "c"], least=2) == [0, 2]
    with pytest.raises(UserError, match="both present and absent"):
        with_both_classes(truth[:, 1:2], ["b"])
