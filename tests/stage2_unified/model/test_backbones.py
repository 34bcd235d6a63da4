"""Pretrained backbones: training from a local causal language model, fully or with LoRA."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.backbones import add_adapters, load_backbone, merge_adapters, pretrained_config
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.training.build import make_optimizers
from medunifier.stage2_unified.training.config import DecoderOptimConfig
from tests.stage2_unified.conftest import losses_of, make_batch, make_config

SIZES = {
    "vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(params=[(Qwen3ForCausalLM, Qwen3Config, False), (LlamaForCausalLM, LlamaConfig, True)])
def checkpoint(request, tmp_path):
    """A causal LM of 48 ids, of which the text tokenizer uses 40; with and without tied embeddings."""
    model_class, config_class, tied = request.param
    extra = {"head_dim": 8} if config_class is Qwen3Config else {}
    stock = model_class(config_class(**SIZES, **extra, tie_word_embeddings=tied)).eval()
    stock.save_pretrained(tmp_path / "stock")
    return stock, str(tmp_path / "stock")


def model_from(folder):
    model = MedUnifierForConditionalGeneration(make_config(text_config=pretrained_config(folder, 40)))
    model.set_codebook(torch.nn.functional.normalize(torch.randn(16, 4), dim=-1))
    load_backbone(model, folder)
    return model


def test_the_model_starts_with_the_checkpoints_logits(checkpoint):
    stock, folder = checkpoint
    model, ids = model_from(folder).eval(), torch.randint(0, 40, (2, 12))
    with torch.no_grad():
        ours, theirs = model(input_ids=ids).logits[..., :40], stock(input_ids=ids).logits[..., :40]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert losses_of(model, make_batch())["loss"].isfinite()


def train(model, optimizer, steps=8):
    for _ in range(steps):
        loss = losses_of(model, make_batch())["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def test_adapters_keep_base_layers_and_text_embeddings_and_merge(checkpoint):
    model = model_from(checkpoint[1])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    names = set(model.state_dict())
    first = losses_of(model, make_batch())["loss"].item()
    add_adapters(model, rank=2, alpha=16.0)
    with_adapters = losses_of(model, make_batch())["loss"].item()
    assert with_adapters == pytest.approx(first, rel=1e-6)  # adapters are initialised to have no effect
    (optimizer,) = make_optimizers(model, DecoderOptimConfig(lr=1e-2, kind="adamw", weight_decay=0.1))
    assert train(model, optimizer) < first
    trained = losses_of(model, make_batch())["loss"].item()
    for name, parameter in model.named_parameters():
        if "base_layer" in name or "norm" in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name
    text_size = model.vocabulary.text_size
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        after = dict(model.named_parameters())[name]
        assert torch.equal(after[:text_size], before[name][:text_size])
        assert not torch.equal(after[text_size:], before[name][text_size:])

    merge_adapters(model)
    assert set(model.state_dict()) == names
    assert losses_of(model, make_batch())["loss"].item() == pytest.approx(trained, rel=1e-5)
    changed = model.model.layers[0].self_attn.q_proj.weight - before["model.layers.0.self_attn.q_proj.weight"]
    assert torch.linalg.matrix_rank(changed, rtol=1e-3) == 2


def test_checkpoints_that_do_not_fit_are_refused(checkpoint, tmp_path):
    _, folder = checkpoint
    with pytest.raises(UserError, match="longest sequence"):
        pretrained_config(folder, 65)
    with pytest.raises(UserError, match="config.json"):
        pretrained_config(str(tmp_path), 40)
    model = MedUnifierForConditionalGeneration(make_config(text_size=49, text_config=pretrained_config(folder, 40)))
    with pytest.raises(UserError, match="do not belong together"):
        load_backbone(model, folder)
