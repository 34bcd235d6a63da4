"""Convert the unified model to a ``transformers`` causal LM: one embedding table, one head, no custom code.

The projected codebook is folded into the embedding table. ``AutoModelForCausalLM`` (and any server of its
checkpoints) can then continue text with image codes and image codes with text. The contrastive and matching heads
are not included.
"""

import torch
from torch import Tensor
from transformers import AddedToken, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.vocabulary import BOS, EOS, NEVER_WRITTEN, PAD, SPECIALS, Vocabulary

_TOLERANCE = 1e-4  # relative to the largest logit; both models compute in float32


def code_token(code: int) -> str:
    """Return the token of an image code in the exported tokenizer."""
    return f"<code:{code}>"


@torch.no_grad()
def to_causal_lm(model: MedUnifierForConditionalGeneration) -> PreTrainedModel:
    """Convert a model in eval mode to the ``transformers`` class of its decoder (``Qwen3ForCausalLM``, …).

    At text positions the logits below ``vocabulary.offset`` equal the unified model's, at image positions those
    from ``offset`` on. The other logits were never trained.

    Raises:
        UserError: if the model is not causal, or the class computes different logits (for example a backbone that
            scales its logits).
    """
    if model.has_experts:
        raise UserError(
            f"this model has experts by kind of token (model.experts {model.config.experts}), which a causal LM "
            "cannot represent: train with model.experts none to export one"
        )
    if model.config.bidirectional_images:
        raise UserError(
            "this model attends bidirectionally within images (model.bidirectional_images), which a causal LM "
            "cannot represent"
        )
    config = type(model.config.text_config).from_dict(model.config.text_config.to_dict())
    config.vocab_size = len(model.vocabulary)
    config.tie_word_embeddings = False
    stock: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    text_embeddings = model.get_input_embeddings().weight
    weights = dict(model.model.named_parameters())
    weights = {name: value for name, value in weights.items() if value is not text_embeddings}
    stock.base_model.load_state_dict(weights, strict=False)
    codes = model.embed_codes(torch.arange(model.config.codebook_size, device=text_embeddings.device))
    stock.get_input_embeddings().weight.copy_(torch.cat([text_embeddings, codes]))
    stock.get_output_embeddings().weight.copy_(model.lm_head.weight)
    difference = _largest_difference(model, stock.eval())
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{type(stock).__name__} does not reproduce the model's logits (relative error {difference:.1e}): "
            "this backbone cannot be exported as a causal LM"
        )
    return stock


def _largest_difference(model: MedUnifierForConditionalGeneration, stock: PreTrainedModel) -> float:
    """Return the largest difference of text and image logits for random ids, relative to the largest logit."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(model.vocabulary), (1, 32), generator=generator).to(model.codebook.device)
    hidden = model.model(inputs_embeds=model.embed_ids(ids), use_cache=False).last_hidden_state
    ours = torch.cat([model.text_logits(hidden), model.image_logits(hidden)], dim=-1).float()
    theirs: Tensor = stock.to(ids.device)(input_ids=ids).logits
    return float((ours - theirs).abs().max() / ours.abs().max())


def add_special_and_code_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    """Add special tokens ``<bos>`` … and code tokens ``<code:0>`` … to the text tokenizer, in the model's order.

    A special token that the text tokenizer already uses otherwise is renamed to ``<mu:bos>``.
    """
    taken = tokenizer.get_vocab()
    names = {name: f"<mu:{name[1:]}" if name in taken else name for name in SPECIALS}
    added = [*names.values(), *(code_token(code) for code in range(vocabulary.codebook_size))]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in added], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = names[BOS], names[EOS], names[PAD]
    last = tokenizer.convert_tokens_to_ids(code_token(vocabulary.codebook_size - 1))
    if last != len(vocabulary) - 1:
        raise UserError(
            f"the text tokenizer's last id should be {vocabulary.text_size - 1}: it does not belong to this model"
        )


def generation_configs(config: MedUnifierConfig) -> tuple[GenerationConfig, GenerationConfig]:
    """Return the generation configs for a report and for an image of exactly N codes."""
    vocabulary, tokens = config.vocabulary, config.image_tokens
    ids = {"bos_token_id": vocabulary[BOS], "eos_token_id": vocabulary[EOS], "pad_token_id": vocabulary[PAD]}
    never = [vocabulary[name] for name in NEVER_WRITTEN]
    report = GenerationConfig(
        **ids,
        do_sample=False,
        max_new_tokens=config.max_report_tokens + 1,
        suppress_tokens=[*never, *range(vocabulary.offset, len(vocabulary))],
    )
    image = GenerationConfig(
        **ids | {"eos_token_id": None},
        do_sample=True,
        top_k=0,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        suppress_tokens=list(range(vocabulary.offset)),
    )
    return report, image
