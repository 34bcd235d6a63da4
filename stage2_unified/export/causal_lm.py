"""The unified model as a stock causal language model: one embedding table, one head, no code of ours.

What the frozen codebook and its projection amount to is folded into rows of the embedding table. So
``AutoModelForCausalLM`` (and whatever serves its checkpoints) continues a row of words with codes and a row of
codes with words. The contrast's and matching's heads have no place in it.
"""

import torch
from torch import Tensor
from transformers import AddedToken, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.vocabulary import BOS, EOS, NEVER_WRITTEN, PAD, SPECIALS, Vocabulary

_TOLERANCE = 1e-4  # of the largest logit; both sides compute in float32


def code_token(code: int) -> str:
    """How an image code reads in the exported tokenizer."""
    return f"<code:{code}>"


@torch.no_grad()
def to_causal_lm(model: MedUnifierForConditionalGeneration) -> PreTrainedModel:
    """A model in eval mode -> the same as ``transformers``' own class for its decoder (``Qwen3ForCausalLM``, …).

    On a position of text the logits of the ids below ``vocabulary.offset`` are the unified model's, on a position
    of an image those from ``offset`` on; the others were never trained and mean nothing.

    Raises:
        UserError: for a model that is not causal, or if that class does not give the same logits (a backbone that
            scales its head, say).
    """
    if model.config.bidirectional_images:
        raise UserError(
            "this model reads images in both directions (model.bidirectional_images): a stock causal LM cannot"
        )
    config = type(model.config.text_config).from_dict(model.config.text_config.to_dict())
    config.vocab_size = len(model.vocabulary)
    config.tie_word_embeddings = False
    stock: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    words = model.get_input_embeddings().weight
    weights = dict(model.model.named_parameters())
    weights = {name: value for name, value in weights.items() if value is not words}
    stock.base_model.load_state_dict(weights, strict=False)
    codes = model.embed_codes(torch.arange(model.config.codebook_size, device=words.device))
    stock.get_input_embeddings().weight.copy_(torch.cat([words, codes]))
    stock.get_output_embeddings().weight.copy_(model.lm_head.weight)
    difference = _largest_difference(model, stock.eval())
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{type(stock).__name__} does not give this model's logits (off by {difference:.1e} of the largest): "
            "this backbone cannot be exported as a causal LM"
        )
    return stock


def _largest_difference(model: MedUnifierForConditionalGeneration, stock: PreTrainedModel) -> float:
    """Of text and image logits on one row of ids of all kinds, as a share of the largest logit."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(len(model.vocabulary), (1, 32), generator=generator).to(model.codebook.device)
    hidden = model.model(inputs_embeds=model.embed_ids(row), use_cache=False).last_hidden_state
    ours = torch.cat([model.text_logits(hidden), model.image_logits(hidden)], dim=-1).float()
    theirs: Tensor = stock.to(row.device)(input_ids=row).logits
    return float((ours - theirs).abs().max() / ours.abs().max())


def add_special_and_code_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    """Give the text tokenizer the rest of the id space: ``<bos>`` …, then ``<code:0>`` …, in the model's order.

    A special that the text tokenizer has already, with a meaning of its own, is spelled ``<mu:bos>``.
    """
    taken = tokenizer.get_vocab()
    names = {name: f"<mu:{name[1:]}" if name in taken else name for name in SPECIALS}
    added = [*names.values(), *(code_token(code) for code in range(vocabulary.codebook_size))]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in added], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = names[BOS], names[EOS], names[PAD]
    last = tokenizer.convert_tokens_to_ids(code_token(vocabulary.codebook_size - 1))
    if last != len(vocabulary) - 1:
        raise UserError(
            f"the text tokenizer's ids do not end at {vocabulary.text_size - 1}: the model is not its own"
        )


def generation_configs(config: MedUnifierConfig) -> tuple[GenerationConfig, GenerationConfig]:
    """What ``generate()`` needs to be told: to write a report, and to draw exactly N codes."""
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
