"""A decoder to begin with: a local checkpoint of a causal language model, whole or with low-rank adapters.

Its layers and its words' embeddings are taken over; the specials, the image codes and the heads are new. With LoRA
(Hu et al., 2021; ``peft``) the layers stay as they are but for the adapters, and so do the words; what is new is
trained. Adapters are merged before a model is exported: what others load is a plain decoder.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration


def pretrained_config(folder: str, positions: int) -> PreTrainedConfig:
    """The checkpoint's configuration.

    Args:
        folder: local; nothing is fetched from a hub.
        positions: tokens of the longest row.

    Raises:
        UserError: if the folder is no checkpoint, or its rows are too short.
    """
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} is no checkpoint (config.json is missing); give a local Hugging Face folder")
    with checked_model_folder(folder, "a checkpoint"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    longest = min(config.max_position_embeddings, getattr(config, "sliding_window", None) or positions)
    if longest < positions:
        raise UserError(
            f"{folder} sees {longest} tokens at once, the longest row has {positions}: use another decoder"
        )
    return config


@torch.no_grad()
def take_over(model: MedUnifierForConditionalGeneration, folder: str) -> None:
    """Copy the checkpoint's layers, and its embeddings and head for the words.

    Raises:
        UserError: if the checkpoint has fewer words than the text tokenizer, or other weights than its class.
    """
    with checked_model_folder(folder, "a checkpoint"):
        stock = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        )
    words = model.vocabulary.text_size
    table, head = stock.get_input_embeddings().weight, stock.get_output_embeddings().weight
    if len(table) < words:
        raise UserError(
            f"{folder} embeds {len(table)} words, the text tokenizer has {words}: they do not belong together"
        )
    new = model.get_input_embeddings().weight
    weights = {name: value for name, value in stock.base_model.named_parameters() if value is not table}
    absent = set(dict(model.model.named_parameters())) - set(weights)
    model.model.load_state_dict(weights, strict=False)
    if len(absent) != 1:  # the table alone
        raise UserError(f"{folder} lacks weights of {type(model.model).__name__}: {', '.join(sorted(absent)[:3])}, …")
    for own, theirs in ((new, table), (model.lm_head.weight, head)):
        # What is new is of the size of what is there, or it would drown (or be drowned).
        own.normal_(std=float(theirs[:words].std()))
        own[:words] = theirs[:words]


def add_adapters(model: MedUnifierForConditionalGeneration, rank: int, alpha: float) -> None:
    """Freeze the layers and the words; adapters in every linear map of the layers, and all that is new, are trained.

    Raises:
        UserError: if ``peft`` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("lora.rank needs peft: pip install 'medunifier[lora]'") from None
    maps = {name for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(maps)), model.model)
    words = model.vocabulary.text_size
    for table in (model.get_input_embeddings().weight, model.lm_head.weight):
        table.requires_grad_(True)
        table.register_hook(lambda gradient: _without_words(gradient, words))


def _without_words(gradient: Tensor, words: int) -> Tensor:
    gradient = gradient.clone()
    gradient[:words] = 0
    return gradient


def merge_adapters(model: MedUnifierForConditionalGeneration) -> None:
    """Add what the adapters learned to the maps that they adapt, in place, and take them out."""
    adapted: list[tuple[nn.Module, str, Any]] = [
        (parent, name, child)
        for parent in model.model.modules()
        for name, child in parent.named_children()
        if hasattr(child, "lora_A")
    ]
    for parent, name, child in adapted:
        child.merge()
        setattr(parent, name, child.get_base_layer())
