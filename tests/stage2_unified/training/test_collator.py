from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunifier.data.shards.dataset import Sample
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.processing.report_codec import ReportCodec, normalise_report, sections_of
from medunifier.stage2_unified.model.processing.text_tokenizer import load_text_tokenizer, train_text_tokenizer
from medunifier.stage2_unified.model.processing.view_selection import choose_prior_view
from medunifier.stage2_unified.model.vocabulary import SPECIALS, Vocabulary, view_name
from medunifier.stage2_unified.training.collator import StudyCollator

CORPUS = ["The heart is enlarged.", "No pleural effusion.", "The lungs are clear.", "Heart size is normal."] * 3
TEXT_TOKENIZER = train_text_tokenizer(CORPUS, 320)
CODEC = ReportCodec(TEXT_TOKENIZER, Vocabulary(len(TEXT_TOKENIZER), 512), ("findings", "impression"), 200)


def test_ids_of_text_specials_and_codes_do_not_overlap():
    vocabulary = Vocabulary(300, 512)
    specials = [vocabulary[name] for name in SPECIALS]
    assert specials == list(range(300, vocabulary.offset)) and len(vocabulary) == vocabulary.offset + 512
    with pytest.raises(ValueError):
        _ = vocabulary["<nope>"]


@pytest.mark.parametrize(
    ("position", "view"),
    [("PA", "pa"), ("ap", "ap"), ("LL", "lateral"), ("LATERAL", "lateral"), ("", "other"), ("LPO", "other")],
)
def test_views(position, view):
    assert view_name(position) == view


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text())
def test_any_text_is_decoded_without_loss(findings, impression):
    codec = ReportCodec(TEXT_TOKENIZER, CODEC.vocabulary, CODEC.sections, 10_000)
    decoded = codec.decode(codec.encode({"findings": findings, "impression": impression}))
    assert decoded == {"findings": findings.strip(), "impression": impression.strip()}


def test_a_report_is_encoded_as_sections_in_order_and_decoded_up_to_eos():
    vocabulary = CODEC.vocabulary
    ids = CODEC.encode({"impression": "No pleural effusion.", "findings": "The lungs are clear."})
    assert ids[0] == vocabulary.section("findings") and vocabulary.section("impression") in ids
    assert CODEC.encode({"findings": "", "impression": " "}) == []
    after = CODEC.decode([*ids, vocabulary["<eos>"], *TEXT_TOKENIZER.encode("nonsense")])
    assert after == {"findings": "The lungs are clear.", "impression": "No pleural effusion."}
    assert (
        len(ReportCodec(TEXT_TOKENIZER, vocabulary, CODEC.sections, 3).encode({"findings": "The lungs are clear."}))
        == 3
    )


def test_normalised_reports_ignore_only_case_and_punctuation():
    assert normalise_report("No  acute\nprocess.") == normalise_report("no acute process")
    assert normalise_report("No effusion. Clear.") != normalise_report("Effusion. Clear.")


def study(number, views=("LATERAL", "PA"), **report):
    codes = np.stack([np.full((2, 2), 10 * number + image, dtype=np.uint16) for image in range(len(views))])
    info = {
        "views": list(views),
        "patient_id": f"p{number // 2}",
        "report": {"findings": "", "impression": ""} | report,
    }
    return Sample(key=str(number), info=info, codes=codes)


def test_a_batch_has_the_frontal_views_and_keys():
    samples = [(0, study(0, findings="The lungs are clear.")), (1, study(1, impression="the lungs are clear"))]
    batch = StudyCollator(CODEC)(samples)
    assert batch.images.codes[:, 0, 0].tolist() == [1, 11]  # the second image of each: PA
    assert batch.images.view.tolist() == [[CODEC.vocabulary.view("PA")]] * 2
    assert batch.report_key[0] == batch.report_key[1] and batch.patient_key[0] == batch.patient_key[1]
    assert not batch.drop_text.any()
    assert (batch.report[0, batch.report_length[0] :] == CODEC.vocabulary["<pad>"]).all()


def test_random_choices_depend_only_on_the_position():
    collate = StudyCollator(CODEC, text_dropout=0.5, seed=1, training=True)
    samples = [(position, study(position, findings="Clear.")) for position in range(40)]
    batch, parts = collate(samples), [collate(samples[:7]), collate(samples[7:])]
    assert torch.equal(batch.drop_text, torch.cat([part.drop_text for part in parts]))
    assert torch.equal(batch.images.codes, torch.cat([part.images.codes for part in parts]))
    assert 8 < batch.drop_text.sum() < 32
    assert set((batch.images.codes[:, 0, 0] % 10).tolist()) == {0, 1}  # both views are used


def test_section_dropout_keeps_one_section_and_the_key():
    samples = [(n, study(n, findings="The lungs are clear.", impression="No effusion.")) for n in range(200)]
    samples += [(200, study(200, impression="No effusion."))]
    unchanged = StudyCollator(CODEC, seed=1, training=True)(samples)
    reduced = StudyCollator(CODEC, seed=1, training=True, section_dropout=0.5)(samples)
    sections = [tuple(name for name, text in CODEC.decode(ids).items() if text) for ids in reduced.report.tolist()]
    fractions = {kind: sections[:200].count(kind) / 200 for kind in set(sections)}
    assert fractions == pytest.approx(
        {("findings", "impression"): 0.5, ("findings",): 0.25, ("impression",): 0.25}, abs=0.08
    )
    assert sections[200] == ("impression",)
    assert torch.equal(reduced.report_key, unchanged.report_key)
    assert torch.equal(reduced.images.codes, unchanged.images.codes)


def test_several_views_are_in_random_order_with_a_prior_of_the_same_view():
    views = ("LATERAL", "PA", "AP")
    prior = study(90, views=("PA", "LATERAL"), findings="Clear.")
    samples = [(n, replace(study(n, views=views, findings="Clear."), prior=prior if n % 2 else None))
               for n in range(60)]  # fmt: skip
    pad, name_of = CODEC.vocabulary["<pad>"], {CODEC.vocabulary.view(view): view for view in views}
    batch = StudyCollator(CODEC, seed=1, training=True, max_views=2, view_dropout=0.4)(samples)
    chosen = [[name_of[int(v)] for v in of_study if v != pad] for of_study in batch.images.view]
    assert {len(names) for names in chosen} == {1, 2} and 12 < sum(len(names) == 1 for names in chosen) < 36
    assert {tuple(names) for names in chosen if len(names) == 2} == {(a, b) for a in views for b in views if a != b}
    for number, names in enumerate(chosen):
        codes = batch.images.codes[number, : len(names), 0]
        assert codes.tolist() == [10 * number + views.index(view) for view in names]
        if number % 2:
            assert name_of[int(batch.images.prior_view[number, 0])] == ("LATERAL" if names[0] == "LATERAL" else "PA")
            assert batch.images.prior_codes[number, 0, 0] == 900 + (names[0] == "LATERAL")
        else:
            assert batch.images.prior_view[number].tolist() == [pad]
    fixed = StudyCollator(CODEC, max_views=3)(samples[:1])
    assert [name_of[int(v)] for v in fixed.images.view[0]] == ["PA", "LATERAL", "AP"]
    assert fixed.images.prior_view is None
    assert (choose_prior_view(["LATERAL", "AP"], like="PA"), choose_prior_view(["LATERAL"], like="PA")) == (1, 0)


def test_image_shards_and_unknown_sections_are_refused():
    with pytest.raises(UserError, match="medunifier tokenize"):
        StudyCollator(CODEC)([(0, Sample(key="a", info={"views": ["PA"], "patient_id": "p", "report": {}}))])
    with pytest.raises(UserError, match="text choice"):
        sections_of("history")


def test_a_saved_text_tokenizer_loads_and_an_absent_one_is_refused(tmp_path):
    TEXT_TOKENIZER.save_pretrained(tmp_path)
    assert load_text_tokenizer(str(tmp_path)).encode("The heart.") == TEXT_TOKENIZER.encode("The heart.")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_text_tokenizer(str(tmp_path / "absent"))
