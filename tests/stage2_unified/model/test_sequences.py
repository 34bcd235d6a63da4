"""Sequences: their ids and padding, and independence of the other studies of a batch."""

from dataclasses import replace

import pytest
import torch

from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.model.sequences import ImageSpans, SequenceBuilder, left_padded
from medunifier.stage2_unified.model.vocabulary import Vocabulary
from medunifier.stage2_unified.training.config import OBJECTIVES, LossWeights
from medunifier.stage2_unified.training.four_objectives import FourObjectives
from tests.stage2_unified.conftest import losses_of, make_batch, make_model

V = Vocabulary(40, 16)
SEQUENCES = SequenceBuilder(V)
PA, LATERAL = V.view("PA"), V.view("LATERAL")
RAGGED = {"images": [1, 2, 3, 1, 2, 2], "priors": [0, 1, 0, 2, 0, 1]}


def ids(*names):
    """Return the ids of specials by name and of codes by number."""
    return [V[f"<{name}>"] if isinstance(name, str) else V.offset + name for name in names]


def alone(batch, index):
    """Return one study of a batch, without padding."""
    pad = V["<pad>"]
    values = {name: getattr(batch, name)[index : index + 1] for name in ("report_key", "patient_key", "drop_text")}
    length = int(batch.report_length[index])
    spans = batch.images
    images, priors = int((spans.view[index] != pad).sum()), int((spans.prior_view[index] != pad).sum())
    values["report"] = batch.report[index : index + 1, :length]
    values["report_length"] = batch.report_length[index : index + 1]
    prior = (spans.prior_codes[index : index + 1, :priors], spans.prior_view[index : index + 1, :priors])
    values["images"] = ImageSpans(
        spans.codes[index : index + 1, :images], spans.view[index : index + 1, :images], *(prior if priors else ())
    )
    return replace(batch, **values)


def test_the_sequences_of_one_image():
    """Shipped models were trained on this order; another one would make their weights useless."""
    codes = torch.tensor([[1, 2, 3, 4, 5, 6], [15, 14, 13, 12, 11, 10]])
    images = ImageSpans.of(codes, torch.tensor([PA, LATERAL]))
    assert SEQUENCES.image_first(images).ids.tolist() == [
        ids("bos", "view:pa", "boi", 1, 2, 3, 4, 5, 6, "eoi", "emb_img"),
        ids("bos", "view:lateral", "boi", 15, 14, 13, 12, 11, 10, "eoi", "emb_img"),
    ]
    report, length = torch.tensor([[20, 21, 22], [23, V["<pad>"], V["<pad>"]]]), torch.tensor([3, 1])
    assert SEQUENCES.text_first(report, length, images)[0].ids.tolist() == [
        [V["<bos>"], 20, 21, 22, *ids("emb_txt", "view:pa", "boi", 1, 2, 3, 4, 5, 6, "eoi")],
        [V["<bos>"], 23, *ids("emb_txt", "view:lateral", "boi", 15, 14, 13, 12, 11, 10, "eoi", "pad", "pad")],
    ]


def test_prior_images_come_first_and_sequences_are_padded_on_the_right():
    spans = ImageSpans.of(
        torch.tensor([[[1, 2], [3, 4]], [[5, 6], [9, 9]]]), torch.tensor([[PA, LATERAL], [PA, V["<pad>"]]]),
        torch.tensor([[[9, 9]], [[7, 8]]]), torch.tensor([[V["<pad>"]], [PA]]),
    )  # fmt: skip
    prefix = SEQUENCES.image_first(spans)
    pa, lateral, eos, match = "view:pa", "view:lateral", "eos", "match"
    prefixes = [
        ids("bos", pa, "boi", 1, 2, "eoi", lateral, "boi", 3, 4, "eoi", "emb_img"),
        ids("bos", "prior", pa, "boi", 7, 8, "eoi", pa, "boi", 5, 6, "eoi", "emb_img"),
    ]
    assert unpadded(prefix) == prefixes
    report, length = torch.tensor([[20, 30, 30], [21, 22, 30]]), torch.tensor([1, 2])
    assert unpadded(SEQUENCES.with_report(prefix, report, length)) == [
        [*prefixes[0], 20, *ids(eos, match)],
        [*prefixes[1], 21, 22, *ids(eos, match)],
    ]
    sequences, boi = SEQUENCES.text_first(report, length, spans)
    assert unpadded(sequences) == [
        [V["<bos>"], 20, *ids("emb_txt", pa, "boi", 1, 2, "eoi", lateral, "boi", 3, 4, "eoi")],
        [V["<bos>"], 21, 22, *ids("emb_txt", "prior", pa, "boi", 7, 8, "eoi", pa, "boi", 5, 6, "eoi")],
    ]
    assert boi.tolist()[0] == [4, 9] and int(boi[1, 0]) == 11
    assert sequences.ids[0, 9] == sequences.ids[1, 11] == V["<boi>"]
    moved, visible, positions = left_padded(sequences)
    assert (
        moved[0, 2:].tolist() == sequences.ids[0, :13].tolist() and visible[0].tolist() == [False] * 2 + [True] * 13
    )
    assert positions[0, 2:].tolist() == list(range(13)) and positions[1].tolist() == list(range(15))


def unpadded(sequences):
    """Return the ids of each sequence up to its length; what follows must be padding."""
    for sequence, length in zip(sequences.ids, sequences.length, strict=True):
        assert (sequence[length:] == V["<pad>"]).all()
    return [sequence[:length].tolist() for sequence, length in zip(sequences.ids, sequences.length, strict=True)]


def test_images_and_views_of_different_shapes_are_refused():
    one = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="do not fit"):
        ImageSpans.of(one[:, None], torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="do not fit"):
        ImageSpans.of(one, one[:, 0], prior_codes=one)
    with pytest.raises(ValueError, match="do not fit"):
        ImageSpans.of(one, one[:, 0], one[:1], one[:1, 0])


@torch.no_grad()
def test_the_outputs_of_a_study_do_not_depend_on_its_batch():
    model, batch = make_model().eval(), make_batch(**RAGGED)
    together = model.get_image_features(batch.images)
    matched = model.match(batch.images, batch.report, batch.report_length)
    for index in range(len(batch)):
        one = alone(batch, index)
        assert torch.allclose(model.get_image_features(one.images)[0], together[index], atol=2e-6)
        probability = model.match(one.images, one.report, one.report_length)
        assert probability.item() == pytest.approx(matched[index].item(), rel=1e-4)


def test_the_content_of_absent_images_has_no_effect():
    model, batch = make_model(), make_batch(**RAGGED)
    images = batch.images
    noisy = replace(images, codes=images.codes.clone(), prior_codes=images.prior_codes.clone())
    noisy.codes[images.view == V["<pad>"]] = 15
    noisy.prior_codes[images.prior_view == V["<pad>"]] = 15
    assert not torch.equal(noisy.codes, images.codes) and not torch.equal(noisy.prior_codes, images.prior_codes)
    wider = replace(
        images,
        codes=torch.nn.functional.pad(images.codes, (0, 0, 0, 2)),
        view=torch.nn.functional.pad(images.view, (0, 2), value=V["<pad>"]),
    )
    plain = losses_of(model, batch)
    for other in (noisy, wider):
        found = losses_of(model, replace(batch, images=other))
        for name in (*OBJECTIVES, "z", "matching_accuracy"):
            assert found[name].item() == pytest.approx(plain[name].item(), rel=1e-5), name


def test_codes_of_the_prior_are_attended_to_and_get_no_loss():
    """The gradient of the head is that of the study's codes alone; the prior image has other codes."""
    model, batch = make_model(), make_batch(images=[1] * 6, priors=[1] * 6)
    images = replace(batch.images, codes=batch.images.codes % 8, prior_codes=8 + batch.images.prior_codes % 8)
    batch = replace(batch, images=images)
    losses = losses_of(model, batch, contrast=0.0, matching=0.0, report=0.0, image=1.0, z=0.0)
    losses["loss"].backward()
    with torch.no_grad():
        sequences, boi = SEQUENCES.text_first(batch.report, batch.report_length, images)
        hidden = model.model(inputs_embeds=model.embed_ids(sequences.ids[:, :-2]), use_cache=False).last_hidden_state
        positions = boi[..., None] + torch.arange(6)
        states = hidden[torch.arange(6)[:, None], positions.flatten(1)].flatten(0, 1)
        target = torch.nn.functional.one_hot(images.codes.flatten(), 16)
        expected = (model.image_logits(states).softmax(-1) - target).T @ states / len(states)
    assert torch.allclose(model.lm_head.weight.grad[V.offset :], expected, atol=1e-6)
    other = replace(batch, images=replace(images, prior_codes=8 + (images.prior_codes + 1) % 8))
    assert losses_of(model, other)["image"].item() != pytest.approx(losses["image"].item(), rel=1e-4)
    # The text embedding must not depend on the prior image, or the contrast could be solved by that image alone.
    text = model.get_text_features(batch.report, batch.report_length)
    embeddings, others = (FourObjectives(model, LossWeights())(x, embed_only=True) for x in (batch, other))
    assert torch.allclose(others.text, text, atol=1e-6)
    assert not torch.allclose(others.image, embeddings.image, atol=1e-3)


def generated_without_cache(model, one, guidance):
    """Generate every image of one study greedily, encoding the whole sequence for each code."""
    spans = []
    images = one.images
    if images.prior_view is not None:
        spans = [[V["<prior>"], int(view), V["<boi>"], *(codes + V.offset).tolist(), V["<eoi>"]]
                  for view, codes in zip(images.prior_view[0], images.prior_codes[0], strict=True)]  # fmt: skip
    generated = []
    for view in images.view[0].tolist():
        codes = []
        for _ in range(model.config.image_tokens):
            logits = []
            for text in (one.report[0].tolist(), [V["<uncond>"]]):
                sequence = [V["<bos>"], *text, V["<emb_txt>"], *sum(spans, []), view, V["<boi>"]]
                sequence = torch.tensor([sequence + [code + V.offset for code in codes]])
                hidden = model.model(inputs_embeds=model.embed_ids(sequence), use_cache=False).last_hidden_state
                logits.append(model.image_logits(hidden[0, -1]))
            codes.append(int((logits[1] + guidance * (logits[0] - logits[1])).argmax()))
        spans.append([view, V["<boi>"], *(code + V.offset for code in codes), V["<eoi>"]])
        generated.append(codes)
    return generated


@torch.no_grad()
def test_several_views_and_a_follow_up_equal_uncached_generation():
    model, batch = make_model().eval(), make_batch(studies=3, images=[2, 1, 2], priors=[1, 1, 0])
    inputs = {"report": batch.report, "report_length": batch.report_length}
    inputs |= {name: getattr(batch.images, name) for name in ("view", "prior_codes", "prior_view")}
    greedy = generate_images(model, **inputs, seeds=torch.arange(3), guidance=3.0, temperature=0)
    assert greedy.shape == (3, 2, 6) and not greedy[1, 1].any()
    for index, images in enumerate([2, 1, 2]):
        assert greedy[index, :images].tolist() == generated_without_cache(model, alone(batch, index), 3.0)
    sampled = generate_images(model, **inputs, seeds=torch.arange(3))
    one_view = {name: value[:1, :1] if name == "view" else value[:1] for name, value in inputs.items()}
    first = generate_images(model, **one_view, seeds=torch.arange(1))
    assert torch.equal(first[0, 0], sampled[0, 0])  # the first view does not depend on the second
    assert not torch.equal(sampled[0, 0], sampled[0, 1])


@torch.no_grad()
def test_generated_reports_do_not_depend_on_the_batch():
    model, batch = make_model().eval(), make_batch(studies=4, images=[1, 3, 2, 1], priors=[0, 0, 1, 1])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": V["<pad>"]}
    prefixes, visible, _ = left_padded(SEQUENCES.image_first(batch.images))
    together = model.generate(prefixes, attention_mask=visible.long(), **options)[:, prefixes.shape[1] :]
    for index in range(4):
        prefix = SEQUENCES.image_first(alone(batch, index).images).ids
        generated = model.generate(prefix, attention_mask=torch.ones_like(prefix), **options)
        assert generated[0, prefix.shape[1] :].tolist() == together[index].tolist()
