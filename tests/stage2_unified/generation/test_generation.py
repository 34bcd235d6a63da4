"""Generation: equal with and without cache, independent of the batch; guidance and filters as defined."""

import re

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from medunifier.data.phantom import Phantom
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.generation.no_repeats import NoRepeatedWords
from medunifier.stage2_unified.generation.sampling import sample
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from tests.stage2_unified.conftest import make_batch, make_model


@pytest.fixture
def model():
    return make_model().eval()


def prompts(batch):
    return {"report": batch.report, "report_length": batch.report_length, "view": batch.images.view[:, 0]}


def generated_without_cache(model, report, view, guidance):
    """Generate one image greedily, encoding the whole sequence for each code."""
    v, codes = model.vocabulary, []
    texts = [report, torch.tensor([v["<uncond>"]])]
    for _ in range(model.config.image_tokens):
        logits = []
        for text in texts:
            sequence = torch.cat([torch.tensor([v["<bos>"]]), text, torch.tensor([v["<emb_txt>"]]), view[None],
                                  torch.tensor([v["<boi>"]]), torch.tensor(codes).long() + v.offset])  # fmt: skip
            hidden = model.model(inputs_embeds=model.embed_ids(sequence[None]), use_cache=False).last_hidden_state
            logits.append(model.image_logits(hidden[0, -1]))
        codes.append(int((logits[1] + guidance * (logits[0] - logits[1])).argmax()))
    return codes


@torch.no_grad()
def test_guided_generation_is_equal_with_and_without_cache(model):
    batch = make_batch(studies=5)
    generated = generate_images(model, **prompts(batch), seeds=torch.arange(5), guidance=3.0, temperature=0)
    for index in range(5):
        report = batch.report[index, : batch.report_length[index]]
        expected = generated_without_cache(model, report, batch.images.view[index, 0], 3.0)
        assert generated[index].tolist() == expected


def test_an_image_depends_on_its_seed_and_not_on_its_batch(model):
    batch = make_batch(studies=4)
    together = generate_images(model, **prompts(batch), seeds=torch.tensor([7, 8, 9, 7]))
    for index, seed in enumerate([7, 8, 9, 7]):
        prompt = {name: value[index : index + 1] for name, value in prompts(batch).items()}
        alone = generate_images(model, **prompt, seeds=torch.tensor([seed]))
        assert torch.equal(alone[0], together[index])
    assert together.shape == (4, model.config.image_tokens) and together.max() < model.config.codebook_size
    other = generate_images(model, **prompts(batch), seeds=torch.tensor([1, 2, 3, 4]))
    assert not torch.equal(other, together)


def test_guidance_of_one_equals_sampling_conditioned_on_the_report(model):
    batch = make_batch(studies=3)
    plain = generate_images(model, **prompts(batch), seeds=torch.arange(3), guidance=1.0, temperature=0)
    paired = generate_images(model, **prompts(batch), seeds=torch.arange(3), guidance=1.0 + 1e-9, temperature=0)
    assert torch.equal(plain, paired)


def test_top_k_top_p_and_temperature_filter_as_defined():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    seeds = torch.arange(2000)
    unfiltered = sample(logits, seeds, 0, 1.0, None, None)
    assert torch.bincount(unfiltered, minlength=4) / 2000 == pytest.approx(
        torch.tensor([0.5, 0.3, 0.15, 0.05]), abs=0.04
    )
    assert set(sample(logits, seeds, 0, 1.0, 2, None).tolist()) == {0, 1}
    assert set(sample(logits, seeds, 0, 1.0, None, 0.7).tolist()) == {0, 1}
    assert set(sample(logits, seeds, 0, 1.0, None, 0.4).tolist()) == {0}
    assert set(sample(logits, seeds, 0, 0.0, None, None).tolist()) == {0}
    assert (sample(logits, seeds, 0, 0.3, None, None) == 0).float().mean() > 0.7


@torch.no_grad()
def test_generated_text_is_equal_with_and_without_cache(model):
    batch = make_batch(studies=3)
    ids = model.sequences.image_first(batch.images).ids
    generated = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    expected = ids
    for _ in range(6):
        expected = torch.cat([expected, model(input_ids=expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, expected)
    assert (generated[:, ids.shape[1] :] < model.vocabulary.offset).all()


def test_generate_supports_beams_and_sampling(model):
    batch = make_batch(studies=2)
    ids = model.sequences.image_first(batch.images).ids
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "pad_token_id": model.vocabulary["<pad>"]}
    beams = model.generate(ids, num_beams=3, num_return_sequences=2, **options)
    assert len(beams) == 4
    torch.manual_seed(1)
    sampled = model.generate(ids, do_sample=True, top_k=5, temperature=2.0, **options)
    assert len(sampled) == 2


def after(words, starts, *ids):
    """The tokens that are suppressed after ``ids``."""
    scores = NoRepeatedWords(torch.tensor(words), torch.tensor(starts))(torch.tensor([ids]), torch.zeros(1, 9))
    return (scores[0] == -torch.inf).nonzero().flatten().tolist()


def test_a_word_or_phrase_does_not_follow_itself():
    #        " The" " the" " mid" " right" "." "thorax" " 2"; 7 and 8 are no text
    words = [0, 0, 1, 2, 3, 4, -1]
    starts = [True, True, True, True, False, False, True]
    assert after(words, starts, 8, 0) == [0, 1], "in either case"
    assert after(words, starts, 8, 3, 2, 3) == [2, 3]
    assert after(words, starts, 8, 4, 0, 2, 4, 0) == [0, 1, 2], "a sentence"
    assert after(words, starts, 8, 0, 2, 4, 3, 0) == [0, 1], "a phrase may recur later"
    assert after(words, starts, 8, 4) == [], "nothing but words"
    assert after(words, starts, 8, 6) == after(words, starts, 6, 2, 6) == [], "2 x 2 cm"
    assert 5 not in after(words, starts, 2, 5), "the end of a word is not suppressed: another word would come of it"
    assert after(words, starts, 7) == after(words, starts, 8) == []


def test_the_shipped_model_repeats_no_word_on_images_unlike_its_training(root):
    pipeline = MedUnifierPipeline.from_pretrained(root / "models" / "phantom" / "model", "cpu", 24)
    turned = np.stack([np.rot90(Phantom(64, 0).study(number).images[0]) for number in range(24)])
    codes = pipeline.encode(turned)
    twice = re.compile(r"\b([a-z]+(?: [a-z]+)*) \1\b", re.IGNORECASE)

    def stuttering(**generate):
        reports = pipeline.write_reports(codes, ["PA"] * 24, **generate)
        return [report for report in reports if twice.search(report["findings"])]

    assert stuttering(logits_processor=LogitsProcessorList()), "else these images test nothing"
    assert not stuttering()
    assert not stuttering(num_beams=2, max_new_tokens=24)
