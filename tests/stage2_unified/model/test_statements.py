"""Statements of a study: true of it, short enough, from sentences and labels, and the same at each position."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.shards.dataset import Sample
from medunifier.stage2_unified.model.processing.report_codec import ReportCodec
from medunifier.stage2_unified.model.processing.statements import (
    StatementSampler,
    every_phrase,
    label_vector,
    phrases,
)
from medunifier.stage2_unified.model.processing.text_tokenizer import train_text_tokenizer
from medunifier.stage2_unified.model.vocabulary import Vocabulary
from medunifier.stage2_unified.training.collator import StudyCollator

REPORT = {
    "findings": "There is a large left pleural effusion. No pneumothorax. The aorta is tortuous. "
    "The heart is enlarged.",
    "impression": "Large left effusion and possible pneumonia.",
}
TOKENIZER = train_text_tokenizer([*REPORT.values(), *every_phrase()] * 3, 600)
CODEC = ReportCodec(TOKENIZER, Vocabulary(len(TOKENIZER), 16), ("findings", "impression"), 60)


def info(**changes):
    labels = label_report(" ".join(REPORT.values()))
    return {"patient_id": "p", "views": ["PA"], "report": REPORT, "labels": labels} | changes


def of(labels, name):
    return labels[OBSERVATIONS.index(name)]


def text_of(statement):
    return " ".join(CODEC.decode(statement.ids).values()).strip()


def sampled(of_study, count=2, width=40, times=150):
    sampler = StatementSampler(CODEC, count, width)
    return [s for seed in range(times) for s in sampler.sample(of_study, np.random.default_rng(seed))]


def test_statements_are_true_of_their_study_and_come_from_sentences_and_labels():
    own = label_vector(info()["labels"])
    texts = Counter()
    for statement in sampled(info()):
        stated = [(a, b) for a, b in zip(statement.labels, own, strict=True) if a != -1]
        assert stated and all(a == b for a, b in stated)
        texts[text_of(statement)] += 1
    assert texts["The heart is enlarged."] and texts["There is a large left pleural effusion. No pneumothorax."]
    assert texts["There is pleural effusion."] and texts["No pneumothorax."] and texts["There is no pneumothorax."]
    phrase = sum(count for text, count in texts.items() if text in every_phrase() and text != "No pneumothorax.")
    assert 0.4 < phrase / texts.total() < 0.6
    assert not any("aorta" in text and "." not in text[:-1] for text in texts)  # no label, so nothing contradicts it


def test_a_sentence_that_states_a_finding_is_not_general_and_a_phrase_or_denial_is():
    general = {text_of(statement): statement.general for statement in sampled(info())}
    assert not general["There is a large left pleural effusion."] and not general["The heart is enlarged."]
    assert general["There is pleural effusion."] and general["No pneumothorax."]


def test_every_phrase_means_its_label_to_the_rule_labeler():
    for finding in OBSERVATIONS:
        for value in (0, 1):
            for text in phrases(finding, value):
                labels = label_report(text)
                if finding not in ("No Finding", "Pleural Other"):  # not a term of reports
                    assert labels[finding] == value, text


def test_labels_that_nothing_is_known_of_stay_unknown():
    labels = label_vector({"Edema": 1, "Pneumonia": -1})
    assert (of(labels, "Edema"), of(labels, "Pneumonia"), of(labels, "Fracture")) == (1, -1, -1)
    assert of(labels, "No Finding") == 0
    normal = {"No Finding": 1, "Pneumonia": -1}
    assert of(label_vector(normal), "Edema") == -1  # the data set may not have looked for it
    from_report = label_vector(normal, from_report=True)
    assert (of(from_report, "Edema"), of(from_report, "Pneumonia"), of(from_report, "Support Devices")) == (0, -1, -1)


def test_a_sentence_against_the_labels_of_its_study_is_not_used():
    corrected = info(labels={"Pleural Effusion": 0, "Cardiomegaly": 1})
    texts = {text_of(statement) for statement in sampled(corrected)}
    assert "The heart is enlarged." in texts and not any("large left" in text for text in texts)


def test_statements_fit_their_width():
    assert max(len(statement.ids) for statement in sampled(info())) > 9
    assert max(len(statement.ids) for statement in sampled(info(), width=9)) <= 9


def test_a_study_without_labels_and_sentences_has_padding_alone():
    for statement in sampled(info(report={"findings": "Clear."}, labels={}), times=3):
        assert set(statement.labels) == {-1} and statement.ids == [CODEC.vocabulary["<uncond>"]]


def sample(**changes):
    return Sample(key="a", info=info(**changes), codes=np.zeros((1, 2, 2), np.uint16))


def test_a_batch_with_statements_depends_on_the_positions_and_is_otherwise_that_without():
    samples = [(position, sample()) for position in range(12)]
    collate = StudyCollator(CODEC, 0.5, 1, True, statements=2, statement_tokens=24)
    whole, parts = collate(samples), [collate(samples[:5]), collate(samples[5:])]
    for name in ("labels", "ids", "length", "stated", "general", "has_report"):
        cut = torch.cat([getattr(part.statements, name) for part in parts])
        assert torch.equal(getattr(whole.statements, name), cut), name
    assert whole.statements.ids.shape == (12, 2, 24) and len(whole.statements.ids.flatten(0, 1).unique(dim=0)) > 8
    plain = StudyCollator(CODEC, 0.5, 1, True)(samples)
    assert plain.statements is None and plain.has_report.all()
    assert torch.equal(plain.report, whole.report) and torch.equal(plain.drop_text, whole.drop_text)


def test_a_study_with_labels_alone_has_phrases_in_place_of_its_report():
    empty = {"findings": "", "impression": ""}
    samples = [(position, sample(report=empty, labels={"Edema": 1, "Fracture": 0})) for position in range(8)]
    batch = StudyCollator(CODEC, seed=1, training=True, statements=2)(samples)
    assert not batch.has_report.any() and (batch.report_length > 2).all()
    for ids in batch.report.tolist():
        labels = label_report(CODEC.decode(ids)["findings"])
        assert {name: value for name, value in labels.items() if name != "No Finding"}.items() <= {
            "Edema": 1, "Fracture": 0,
        }.items()  # fmt: skip
    reported = StudyCollator(CODEC, statements=2)([(0, sample()), (1, replace(samples[0][1]))])
    assert reported.has_report.tolist() == [True, False]


@pytest.mark.parametrize("training", [False, True])
def test_statements_move_with_their_batch(training):
    batch = StudyCollator(CODEC, training=training, statements=1)([(0, sample())])
    assert batch.to(torch.device("meta")).statements.ids.device.type == "meta"
