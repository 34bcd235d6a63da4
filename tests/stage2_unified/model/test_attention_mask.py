"""Bidirectional images: the attention mask, and its use in every pass through the model."""

from dataclasses import replace

import pytest
import torch

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.export.causal_lm import to_causal_lm
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.model.attention import bidirectional_image_mask
from medunifier.stage2_unified.model.sequences import ImageSpans, left_padded
from tests.stage2_unified.conftest import GRID, make_batch, make_config, make_model, make_model_folder

TOKENS = GRID[0] * GRID[1]


def sequences_of(model, batch):
    return model.sequences.image_first(batch.images)


def test_codes_attend_to_their_whole_image_and_to_nothing_later():
    model, batch = make_model(), make_batch(studies=2, images=[2, 2], priors=[1, 1])
    ids = sequences_of(model, batch).ids
    mask = bidirectional_image_mask(ids, model.vocabulary)[:, 0]
    is_code = ids[0] >= model.vocabulary.offset
    starts = [4 + image * (TOKENS + 3) for image in range(3)]  # <bos> <prior> <view> <boi>, then <eoi> <view> <boi>
    expected = torch.ones_like(mask[0]).tril()
    for start in starts:
        assert is_code[start : start + TOKENS].all()
        expected[start : start + TOKENS, start : start + TOKENS] = True
    assert is_code.sum() == 3 * TOKENS
    assert torch.equal(mask[0], expected) and torch.equal(mask[1], expected)


def test_a_generated_image_stays_causal():
    model, batch = make_model(bidirectional_images=True), make_batch()
    sequences, _ = model.sequences.text_first(batch.report, batch.report_length, batch.images)
    causal = torch.ones(sequences.ids.shape[1], sequences.ids.shape[1], dtype=torch.bool).tril()
    assert (bidirectional_image_mask(sequences.ids, model.vocabulary) == causal).all()


def test_pads_attend_to_themselves_only():
    model, batch = make_model(), make_batch(studies=2, images=[1, 2])
    ids, visible, _ = left_padded(sequences_of(model, batch))
    mask = bidirectional_image_mask(ids, model.vocabulary, visible)[0, 0]
    pads = TOKENS + 3
    assert not visible[0, :pads].any() and torch.equal(mask[:pads], torch.eye(len(mask), dtype=torch.bool)[:pads])
    assert not mask[pads:, :pads].any()


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_first_code_attends_to_the_last_only_if_bidirectional(bidirectional):
    model, batch = make_model(bidirectional_images=bidirectional), make_batch(studies=2)
    states = []
    model.model.register_forward_hook(lambda _, __, output: states.append(output.last_hidden_state[:, 3]))
    model.encode_images(batch.images)
    changed = batch.images.codes.clone()
    changed[..., -1] = (changed[..., -1] + 1) % 16
    model.get_image_features(replace(batch.images, codes=changed))
    assert torch.allclose(*states, atol=1e-6) != bidirectional


@torch.no_grad()
def test_the_embedding_of_a_padded_study_equals_that_of_the_study_alone():
    model = make_model(bidirectional_images=True)
    batch = make_batch(studies=3, images=[1, 2, 2], priors=[0, 1, 0])
    together = model.get_image_features(batch.images)
    alone = model.get_image_features(ImageSpans(batch.images.codes[:1, :1], batch.images.view[:1, :1]))
    assert torch.allclose(together[:1], alone, atol=1e-5)


@torch.no_grad()
def test_generated_tokens_equal_uncached_passes_over_whole_sequences():
    """Sequences of different lengths, padded on the left, in generate() with its cache and with beams."""
    model = make_model(bidirectional_images=True).eval()
    batch = make_batch(studies=3, images=[1, 2, 1])
    ids, visible, _ = left_padded(sequences_of(model, batch))
    generated = model.generate(ids, attention_mask=visible.long(), max_new_tokens=5, do_sample=False, eos_token_id=-1)
    for number in range(3):
        sequence = ids[number][visible[number]]
        for _ in range(5):
            mask = bidirectional_image_mask(sequence[None], model.vocabulary)
            hidden = model.model(inputs_embeds=model.embed_ids(sequence[None]), attention_mask=mask).last_hidden_state
            sequence = torch.cat([sequence, model.text_logits(hidden[:, -1]).argmax(-1)])
        assert torch.equal(sequence[-5:], generated[number, -5:])
    beams = model.generate(ids, attention_mask=visible.long(), max_new_tokens=5, num_beams=2, eos_token_id=-1)
    assert beams.shape == generated.shape


def test_unsupported_uses_of_bidirectional_images_are_refused():
    model, batch = make_model(bidirectional_images=True).eval(), make_batch(studies=2)
    with pytest.raises(UserError, match="bidirectional"):
        to_causal_lm(model)
    ids = sequences_of(model, batch).ids
    cache = model(input_ids=ids[:, :4], use_cache=True)
    cache = cache.get("cache", cache.get("past_key_values"))
    for rest in (ids[:, 4:], ids[:, -1:]):
        with pytest.raises(ValueError, match="one pass"):
            model(input_ids=rest, cache=cache)
    model.model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="sdpa"):
        model(input_ids=ids)


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True])
def test_eager_attention_writes_the_same_reports_and_is_refused_elsewhere(bidirectional):
    model, batch = make_model(bidirectional_images=bidirectional).eval(), make_batch(studies=4, images=[1, 2, 2, 1])
    ids, visible, _ = left_padded(model.sequences.image_first(batch.images))

    def reports(implementation):
        model.set_attn_implementation(implementation)
        return model.generate(ids, attention_mask=visible.long(), max_new_tokens=5, do_sample=False, eos_token_id=-1)

    assert torch.equal(reports("sdpa"), reports("eager"))
    for use in (
        lambda: model.get_image_features(batch.images),
        lambda: model.get_text_features(batch.report, batch.report_length),
        lambda: model.match(batch.images, batch.report, batch.report_length),
    ):
        with pytest.raises(UserError, match="sdpa"):
            use()


@torch.no_grad()
def test_images_are_not_generated_with_an_attention_that_takes_other_masks():
    model, batch = make_model().eval(), make_batch(studies=2)
    model.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="sdpa"):
        generate_images(model, batch.report, batch.report_length, batch.images.view[:, 0], torch.arange(2))


def test_a_saved_model_stays_bidirectional_and_works_in_the_pipeline(tmp_path):
    folder = make_model_folder(tmp_path, bidirectional_images=True)
    pipeline = MedUnifierPipeline.from_pretrained(folder)
    assert pipeline.model.config.bidirectional_images and not make_config().bidirectional_images
    codes = torch.randint(pipeline.model.config.codebook_size, (2, *pipeline.tokenizer.grid)).numpy()
    assert len(pipeline.write_reports(codes, ["PA", "AP"], max_new_tokens=3)) == 2
    assert pipeline.embed_images(codes, ["PA", "AP"]).shape == (2, 16)
