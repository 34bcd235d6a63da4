"""The exported causal LM, loaded with transformers classes: same logits, same ids, same generations."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3ForCausalLM

from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.cli.export import main
from medunifier.stage2_unified.export.causal_lm import to_causal_lm
from medunifier.stage2_unified.export.causal_lm_folder import IMAGE_GENERATION
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.generation.reports import generate_reports
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import MedUnifierProcessor
from medunifier.stage2_unified.model.sequences import ImageSpans
from tests.stage2_unified.conftest import make_config, make_model, make_model_folder

REPORT = {"findings": "The lungs are clear.", "impression": "No effusion."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained model's folder, exported beside it."""
    folder = make_model_folder(tmp_path_factory.mktemp("trained"))
    assert run_command(main, ["--model", str(folder), "--format", "causal-lm"]) == 0
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return MedUnifierForConditionalGeneration.from_pretrained(folder).eval(), MedUnifierProcessor.from_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def stock(folder):
    out = folder.with_name("model-causal-lm")
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(model) is Qwen3ForCausalLM
    return model, AutoTokenizer.from_pretrained(out)


def inputs(processor, rows=2):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(processor.config.codebook_size, (rows, *processor.config.grid), generator=generator)
    return processor(codes=codes, views=["PA", "AP"][:rows], reports=[REPORT, {"findings": "No effusion."}][:rows])


@torch.no_grad()
def test_logits_of_interleaved_sequences_match_at_every_position(ours, stock):
    model, processor = ours
    given = inputs(processor)
    prefix = model.sequences.image_first(given["images"]).ids
    text_first = model.sequences.text_first(given["report"], given["report_length"], given["images"])[0].ids
    # Two images after one of the prior study.
    codes, view = given["images"].codes, given["images"].view
    pair = torch.cat([codes, codes.flip(2)], dim=1)
    several = model.sequences.image_first(ImageSpans(pair, view.repeat(1, 2), codes.flip(0), view)).ids
    assert (several == model.vocabulary["<prior>"]).sum() == 2
    ids = torch.cat([prefix, several, text_first], dim=1)
    hidden = model.model(inputs_embeds=model.embed_ids(ids)).last_hidden_state
    logits = stock[0](input_ids=ids).logits
    offset = model.vocabulary.offset
    # Where the next token is a code the image logits apply, elsewhere the text logits.
    predicts_code = torch.zeros_like(ids, dtype=torch.bool)
    predicts_code[:, :-1] = ids[:, 1:] >= offset
    assert predicts_code.any() and not predicts_code.all()
    for ours_at, theirs_at in [(model.image_logits(hidden)[predicts_code], logits[predicts_code][:, offset:]),
                        (model.text_logits(hidden)[~predicts_code], logits[~predicts_code][:, :offset])]:  # fmt: skip
        assert (ours_at - theirs_at).abs().max() <= 1e-5 * ours_at.abs().max()


def test_the_tokenizer_covers_all_ids(ours, stock):
    model, processor = ours
    tokenizer = stock[1]
    v = model.vocabulary
    assert len(tokenizer) == len(v) and tokenizer.eos_token_id == v["<eos>"] and tokenizer.pad_token_id == v["<pad>"]
    spelled = "<bos><findings> The lungs are clear.<impression> No effusion.<emb_txt><view:pa><boi><code:0><code:31>"
    ids = tokenizer(spelled, add_special_tokens=False).input_ids
    report = processor.codec.encode(REPORT)
    assert ids == [v["<bos>"], *report, v["<emb_txt>"], v.view("PA"), v["<boi>"], v.offset, v.offset + 31]


def test_stock_generate_gives_the_same_reports_and_only_codes_for_images(folder, ours, stock):
    model, processor = ours
    given = inputs(processor)
    prefix = model.sequences.image_first(given["images"]).ids
    written = stock[0].generate(prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=6)
    same = generate_reports(model, processor.codec, given["images"], max_new_tokens=6)
    assert [processor.codec.decode(row) for row in written[:, prefix.shape[1] :].tolist()] == same

    one = inputs(processor, rows=1)
    view = one["images"].view[:, 0]
    prompt = model.sequences.text_first(one["report"], one["report_length"], next_view=view)[0].ids
    image_generation = GenerationConfig.from_pretrained(folder.with_name("model-causal-lm"), IMAGE_GENERATION)
    image_generation.update(do_sample=False, guidance_scale=3.0)
    negative = torch.tensor([[model.vocabulary["<uncond>"]]])
    uncond = model.sequences.text_first(negative, torch.tensor([1]), next_view=view)[0].ids
    generated = stock[0].generate(
        prompt, attention_mask=torch.ones_like(prompt), negative_prompt_ids=uncond, generation_config=image_generation
    )
    greedy = generate_images(
        model, one["report"], one["report_length"], view, seeds=torch.tensor([0]), guidance=3.0, temperature=0
    )
    assert torch.equal(generated[:, prompt.shape[1] :] - model.vocabulary.offset, greedy)


def test_only_the_requested_section_is_generated(ours):
    model, processor = ours
    given = inputs(processor)
    for section, other in (("findings", "impression"), ("impression", "findings")):
        for report in generate_reports(model, processor.codec, given["images"], section=section, max_new_tokens=9):
            assert report[section] and not report[other]
    with pytest.raises(UserError, match="history"):
        generate_reports(model, processor.codec, given["images"], section="history")


def test_a_repeated_export_is_a_no_op_and_other_folders_are_not_overwritten(folder, tmp_path, capsys):
    assert run_command(main, ["--model", str(folder)]) == 0
    assert "already complete" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    assert run_command(main, ["--model", str(folder), "--out", str(tmp_path / "mine")]) == 1
    assert "exists" in capsys.readouterr().err
    assert run_command(main, ["--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "not a medunifier model folder" in capsys.readouterr().err


def test_a_backbone_with_scaled_logits_is_refused():
    scaled = {
        "model_type": "granite", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 48, "logits_scaling": 8.0,
    }  # fmt: skip
    config = make_config()
    config = type(config)(text_config=scaled, text_size=40, codebook_size=16, code_dim=4, grid=(2, 3))
    with pytest.raises(UserError, match="cannot be exported"):
        to_causal_lm(MedUnifierForConditionalGeneration(config).eval())
    assert to_causal_lm(make_model().eval()) is not None
