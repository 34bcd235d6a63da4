"""Experts by kind of token: equal copies are the dense model, and each token passes the expert of its own kind."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from medunifier.shared.errors import UserError
from medunifier.shared.training.config import LoopConfig
from medunifier.stage2_unified.export.causal_lm import to_causal_lm
from medunifier.stage2_unified.generation import decoding
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.inference.image_backbone import ImageBackbone
from medunifier.stage2_unified.model.backbones import load_backbone, pretrained_config
from medunifier.stage2_unified.model.experts import KINDS, Routing, dense_name, kind_of, token_kinds
from medunifier.stage2_unified.model.memory import unified_size
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.training.build import make_optimizers
from medunifier.stage2_unified.training.config import DecoderOptimConfig
from medunifier.stage2_unified.training.task import UnifiedTask
from tests.stage2_unified.conftest import losses_of, make_batch, make_config, make_model
from tests.stage2_unified.generation.test_decoding import WORDS, LogitsProcessorList, NoRepeatedWords, written

OPTIONS = ("feed_forward", "all")
RAGGED = {"images": [1, 2, 3, 1, 2, 2], "priors": [0, 1, 0, 2, 0, 1], "dropped": (1,)}


def dense_and_experts(option, **changes):
    """Return a dense model and one whose experts are copies of its weights."""
    dense, model = make_model(**changes), make_model(experts=option, **changes)
    model.load_state_dict(dense.state_dict(), strict=False)
    model.copy_text_expert()
    return dense.eval(), model.eval()


def different_experts(option, **changes):
    """Return a model whose experts differ from each other."""
    model = make_model(experts=option, **changes).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if kind_of(name) != "text":
                parameter += (
                    0.3
                    * parameter.std(correction=0).clamp(min=0.3)
                    * torch.randn(parameter.shape, generator=generator)
                )
    return model


def kinds_of(row, vocabulary):
    """Return the kinds of the ids of one sequence, one by one."""
    after_report = prior = False
    kinds = []
    for token in row:
        if token >= vocabulary.offset:
            kinds.append("generated" if after_report and not prior else "read")
            continue
        kinds.append("text")
        after_report |= token == vocabulary["<emb_txt>"]
        prior = (prior or token == vocabulary["<prior>"]) and token != vocabulary["<eoi>"]
    return kinds


def both_orders(model, batch):
    prefix = model.sequences.image_first(batch.images)
    image_first = model.sequences.with_report(prefix, batch.report, batch.report_length)
    return prefix, image_first, model.sequences.text_first(batch.report, batch.report_length, batch.images)[0]


@pytest.mark.parametrize("option", OPTIONS)
def test_equal_experts_give_the_dense_models_losses_gradients_codes_and_reports(option):
    dense, model = dense_and_experts(option)
    batch = make_batch(**RAGGED)
    results = []
    for trained in (dense, model):
        losses = losses_of(trained, batch)
        losses["loss"].backward()
        gradients = {}
        for name, parameter in trained.named_parameters():
            gradients[dense_name(name)] = gradients.get(dense_name(name), 0.0) + parameter.grad
        results.append((losses, gradients))
    (expected, expected_gradients), (found, gradients) = results
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name
    for name, value in expected_gradients.items():
        assert (gradients[name] - value).abs().max() <= 2e-6 * value.abs().max(), name

    prompt = {"report": batch.report, "report_length": batch.report_length, "view": batch.images.view}
    prompt |= {"prior_codes": batch.images.prior_codes, "prior_view": batch.images.prior_view}
    codes = [generate_images(m, **prompt, seeds=torch.arange(6)) for m in (dense, model)]
    assert torch.equal(*codes) and codes[0].any()
    reports = [written(m, batch.images) for m in (dense, model)]
    assert reports[0] == reports[1]
    images, view = batch.images.codes[:, 0], batch.images.view[:, 0]
    states = [ImageBackbone(m)(images, view)[1] for m in (dense, model)]
    assert torch.allclose(*states, atol=1e-5)


def test_the_kind_of_a_token_follows_from_its_sequence_whole_or_in_parts(model):
    for sequences in both_orders(model, make_batch(**RAGGED)):
        ids = sequences.ids
        kinds, state = token_kinds(ids[:, :4], model.vocabulary)
        parts = [kinds]
        for column in range(4, ids.shape[1]):
            kinds, state = token_kinds(ids[:, column : column + 1], model.vocabulary, state)
            parts.append(kinds)
        whole = token_kinds(ids, model.vocabulary)[0]
        assert torch.equal(torch.cat(parts, dim=1), whole)
        named = [[KINDS[kind] for kind in row] for row in whole.tolist()]
        assert named == [kinds_of(row, model.vocabulary) for row in ids.tolist()]


class Selected:
    """Routing without sorting: every expert computes every token, and each token selects its own."""

    def __init__(self, kinds):
        self.kinds = kinds

    def sort(self, values):
        return values

    unsort = sort

    def apply(self, experts, values):
        results = torch.stack([experts[kind](values) for kind in KINDS])
        chosen = self.kinds.view(1, *self.kinds.shape, *[1] * (values.dim() - 2))
        return results.gather(0, chosen.expand(1, *results.shape[1:]))[0]


@pytest.mark.parametrize("option", OPTIONS)
def test_each_token_passes_its_own_expert_in_every_pass(option, monkeypatch):
    model = different_experts(option)
    batch = make_batch(**RAGGED)

    def hidden_states():
        prefix, image_first, text_first = both_orders(model, batch)
        states = model.encode_both_orders(prefix, image_first, text_first)
        alone = model.encode_images(batch.images).hidden
        branches = model.continue_prefix(states[2], batch.report[:, None], batch.report_length[:, None])
        real = [torch.arange(s.shape[1]) < length[:, None] for s, length in zip(
            (*states[:2], branches[:, 0]), (image_first.length, text_first.length, batch.report_length), strict=True
        )]  # fmt: skip
        values = [s[mask] for s, mask in zip((*states[:2], branches[:, 0]), real, strict=True)]
        return [*values, alone, model.get_text_features(batch.report, batch.report_length)]

    sizes, fixed = [], Routing.fixed
    monkeypatch.setattr(Routing, "fixed", lambda *args: sizes.append(fixed(*args)) or sizes[-1])
    found = hidden_states()
    several = [routing for routing in sizes if routing.only is None]
    assert [len(set(routing.sizes) - {0}) for routing in several] == [3, 2]
    monkeypatch.setattr(Routing, "fixed", lambda ids, vocabulary, *_: Selected(token_kinds(ids, vocabulary)[0]))
    for values, expected in zip(found, hidden_states(), strict=True):
        assert torch.allclose(values, expected, atol=1e-5)
    for kind in KINDS[1:]:  # and the experts do differ
        model.copy_text_expert()
        assert not torch.allclose(found[0], hidden_states()[0], atol=1e-2), kind


@pytest.mark.parametrize("option", OPTIONS)
def test_another_expert_changes_the_tokens_of_its_kind_alone(option):
    # In one layer the feed-forward part of a token has no effect on other tokens.
    text_config = make_config().text_config.to_dict() | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    model, batch = make_model(experts=option, text_config=text_config).eval(), make_batch(**RAGGED)
    _, image_first, text_first = both_orders(model, batch)
    before = [model.run_decoder(model.embed_ids(s.ids), routing=model.route(s.ids, s.codes))
              for s in (image_first, text_first)]  # fmt: skip
    for kind in KINDS:
        changed = make_model(experts=option, text_config=text_config).eval()
        layer = changed.model.layers[0]
        mlp = layer.mlp if kind == "text" else layer.experts[kind]["mlp"]
        with torch.no_grad():
            mlp.down_proj.weight.mul_(1.5)
        for sequences, expected in zip((image_first, text_first), before, strict=True):
            hidden = changed.run_decoder(
                changed.embed_ids(sequences.ids), routing=changed.route(sequences.ids, sequences.codes)
            )
            for row, length, states, other in zip(sequences.ids, sequences.length, hidden, expected, strict=True):
                differs = (states != other).any(dim=-1)[:length].tolist()
                assert differs == [k == kind for k in kinds_of(row[:length].tolist(), changed.vocabulary)]


@pytest.mark.parametrize("option", OPTIONS)
def test_decoding_chooses_the_expert_of_each_step(option, monkeypatch):
    model, batch = different_experts(option), make_batch(studies=3, images=[1, 1, 1], priors=[1, 0, 1])
    monkeypatch.setattr(decoding, "COLUMNS", 8)
    options = {"prior_codes": batch.images.prior_codes, "prior_view": batch.images.prior_view}
    codes = generate_images(
        model, batch.report, batch.report_length, batch.images.view[:, 0], torch.arange(3), guidance=1.0,
        temperature=0, **options,
    )  # fmt: skip
    # Each code anew from its whole sequence, one sequence at a time.
    for study in range(3):
        spans = batch.images._each(lambda t, s=study: t[s : s + 1])
        spans = type(spans)(spans.codes[:, :0], spans.view[:, :0], spans.prior_codes, spans.prior_view)
        length = batch.report_length[study : study + 1]
        prompt = model.sequences.text_first(
            batch.report[study : study + 1, : int(length)], length, spans, batch.images.view[study, :1]
        )[0]
        ids = prompt.ids[:, : int(prompt.length)]
        for _ in range(model.config.image_tokens):
            hidden = model.run_decoder(model.embed_ids(ids), routing=model.route_prompt(ids))
            code = model.image_logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, code + model.vocabulary.offset], dim=1)
        assert (ids[0, -model.config.image_tokens :] - model.vocabulary.offset).tolist() == codes[study].tolist()

    images = make_batch(**RAGGED).images
    greedy = written(model, images)
    growing = {"logits_processor": LogitsProcessorList([NoRepeatedWords(*WORDS)])}
    assert greedy == written(model, images, **growing)
    assert written(model, images, num_beams=3, **growing) == written(model, images, num_beams=3, **growing)


def test_a_sequence_continued_in_the_cache_of_transformers_keeps_its_kinds():
    model = different_experts("all")
    ids = both_orders(model, make_batch(studies=3))[2].ids
    whole = model(input_ids=ids).logits
    for cut in (3, ids.shape[1] - 4):  # before <emb_txt>, and among the codes
        first = model(input_ids=ids[:, :cut], use_cache=True)
        cache = getattr(first, "cache", None) or first.past_key_values
        rest = [model(input_ids=ids[:, n : n + 1], past_key_values=cache, use_cache=True).logits
                for n in range(cut, ids.shape[1])]  # fmt: skip
        assert torch.allclose(torch.cat([first.logits, *rest], dim=1), whole, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_compiled_layers_decode_what_eager_ones_do_from_few_graphs(option, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    model, batch = different_experts(option), make_batch(studies=4)
    prompts = {"report": batch.report, "report_length": batch.report_length, "view": batch.images.view}

    def results():
        return generate_images(model, **prompts, seeds=torch.arange(4)).tolist(), written(model, batch.images)

    plain = results()
    torch._dynamo.utils.counters.clear()
    decoding.compile_step(model)
    assert results() == plain
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize(
    ("backend", "checkpointing"), [("eager", False), pytest.param("aot_eager", True, marks=pytest.mark.slow)]
)
def test_compiled_training_layers_equal_eager_ones_and_share_a_graph(backend, checkpointing, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    model, batch = different_experts("all"), make_batch(**RAGGED)
    if checkpointing:
        model.gradient_checkpointing_enable()
    found = []
    for compiled in (False, True):
        if compiled:
            model.compile_layers()
            torch._dynamo.utils.counters.clear()
        losses = losses_of(model, batch)
        losses["loss"].backward()
        found.append((losses, {name: parameter.grad for name, parameter in model.named_parameters()}))
        model.zero_grad()
    (plain, expected), (losses, gradients) = found
    for name, value in plain.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    for name, value in expected.items():
        assert (gradients[name] - value).abs().max() <= 1e-5 * value.abs().max(), name
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # two passes, one graph for all layers
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("option", OPTIONS)
def test_experts_begin_as_copies_of_a_pretrained_decoder_or_a_dense_model(option, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    stock = LlamaForCausalLM(LlamaConfig(vocab_size=48, max_position_embeddings=64, **sizes)).eval()
    stock.save_pretrained(tmp_path / "stock")
    config = make_config(text_config=pretrained_config(str(tmp_path / "stock"), 40), experts=option)
    model = MedUnifierForConditionalGeneration(config).eval()
    load_backbone(model, str(tmp_path / "stock"))
    ids = torch.randint(0, 40, (2, 12))
    assert torch.allclose(model(input_ids=ids).logits[..., :40], stock(input_ids=ids).logits[..., :40], atol=1e-5)
    weights = dict(model.named_parameters())
    of_experts = [name for name in weights if kind_of(name) != "text"]
    assert len(of_experts) == 2 * 2 * (9 if option == "all" else 5)
    assert all(torch.equal(weights[name], weights[dense_name(name)]) for name in of_experts)

    dense = make_model()
    dense.save_pretrained(tmp_path / "dense")
    copied = MedUnifierForConditionalGeneration.from_pretrained(tmp_path / "dense", experts=option)
    batch = make_batch()
    assert losses_of(copied, batch)["loss"].item() == pytest.approx(losses_of(dense, batch)["loss"].item(), rel=1e-6)


def test_a_new_model_begins_with_the_weights_of_the_dense_one_of_the_same_seed():
    models = []
    for option in ("none", *OPTIONS):
        torch.manual_seed(3)
        models.append(MedUnifierForConditionalGeneration(make_config(experts=option)).state_dict())
    assert not any("experts" in name for name in models[0])
    for state in models[1:]:
        assert all(torch.equal(value, models[0][dense_name(name)]) for name, value in state.items())


def test_a_model_folder_keeps_the_option_and_its_weights(tmp_path):
    model = different_experts("all")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["experts"] == "all"
    loaded = MedUnifierForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(UserError, match="experts"):
        to_causal_lm(loaded)
    with pytest.raises(UserError, match="experts"):
        make_config(experts="some")
    with pytest.raises(ValueError, match="routing"):
        loaded.run_decoder(loaded.embed_ids(torch.zeros(1, 2, dtype=torch.long)))


@pytest.mark.parametrize("option", OPTIONS)
def test_arithmetic_a_token_is_the_dense_models_and_muon_updates_all_matrices(option):
    dense, model = make_model(), make_model(experts=option)
    flop = [UnifiedTask._flop_per_token.func(SimpleNamespace(_model=m)) for m in (dense, model)]
    assert flop[0] == flop[1]
    assert model.num_parameters() > 1.5 * dense.num_parameters()
    sizes = [unified_size("model", m.config, LoopConfig()).state for m in (dense, model)]
    assert sizes[1] > 1.5 * sizes[0]
    muon = make_optimizers(model, DecoderOptimConfig())[-1]
    held = {id(p) for group in muon.param_groups for p in group["params"]}
    matrices = [p for name, p in model.model.layers.named_parameters() if p.dim() == 2]
    assert held == {id(p) for p in matrices}
