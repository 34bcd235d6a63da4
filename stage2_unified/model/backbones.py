"""Pretrained backbones: initialise the decoder from a local causal language model, fully trained or with LoRA.

The layers and the text embeddings are copied; special tokens, image codes and the other heads are new. With LoRA
(Hu et al., 2021; ``peft``) the layers and the text embeddings are frozen, and adapters and new parameters are
trained. The adapters are merged before a model is exported, so that an exported model is a plain decoder.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder
from medunifier.stage2_unified.model.experts import dense_name
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration


def pretrained_config(folder: str, positions: int) -> PreTrainedConfig:
    """Return the configuration of a checkpoint.

    Args:
        folder: local folder; nothing is downloaded.
        positions: tokens of the longest sequence.

    Raises:
        UserError: if the folder is not a checkpoint, or its context is shorter than ``positions``.
    """
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} is not a checkpoint (config.json is missing); pass a local Hugging Face folder")
    with checked_model_folder(folder, "a checkpoint"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    longest = min(config.max_position_embeddings, getattr(config, "sliding_window", None) or positions)
    if longest < positions:
        raise UserError(
            f"the context of {folder} is {longest} tokens, but the longest sequence has {positions}: use another "
            "decoder"
        )
    return config


@torch.no_grad()
def load_backbone(model: MedUnifierForConditionalGeneration, folder: str) -> None:
    """Copy the layers of a checkpoint, to each expert if there are several, and the text rows of embeddings and head.

    Raises:
        UserError: if the checkpoint embeds fewer ids than the text tokenizer has, or lacks weights of its class.
    """
    with checked_model_folder(folder, "a checkpoint"):
        stock = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        )
    text_size = model.vocabulary.text_size
    table, head = stock.get_input_embeddings().weight, stock.get_output_embeddings().weight
    if len(table) < text_size:
        raise UserError(
            f"{folder} embeds {len(table)} ids, but the text tokenizer has {text_size}: they do not belong together"
        )
    new = model.get_input_embeddings().weight
    weights = {name: value for name, value in stock.base_model.named_parameters() if value is not table}
    names = [name for name, _ in model.model.named_parameters()]
    weights = {name: weights[dense_name(name)] for name in names if dense_name(name) in weights}
    absent = set(names) - set(weights)
    model.model.load_state_dict(weights, strict=False)
    if len(absent) != 1:  # the embedding table, copied below
        raise UserError(f"{folder} lacks weights of {type(model.model).__name__}: {', '.join(sorted(absent)[:3])}, …")
    for target, source in ((new, table), (model.lm_head.weight, head)):
        # New rows get the standard deviation of the pretrained ones, so that neither dominates the other.
        target.normal_(std=float(source[:text_size].std()))
        target[:text_size] = source[:text_size]


def add_adapters(model: MedUnifierForConditionalGeneration, rank: int, alpha: float) -> None:
    """Add adapters to every linear layer of the decoder; freeze its layers and the text rows of its embeddings.

    Raises:
        UserError: if ``peft`` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("lora.rank needs peft: pip install 'medunifier[lora]'") from None
    linear = {name for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(linear)), model.model)
    text_size = model.vocabulary.text_size
    for table in (model.get_input_embeddings().weight, model.lm_head.weight):
        table.requires_grad_(True)
        table.register_hook(lambda gradient: _without_text_rows(gradient, text_size))


def _without_text_rows(gradient: Tensor, text_size: int) -> Tensor:
    gradient = gradient.clone()
    gradient[:text_size] = 0
    return gradient


def merge_adapters(model: MedUnifierForConditionalGeneration) -> None:
    """Merge the adapters into the weights of their layers, in place, and remove them."""
    adapted: list[tuple[nn.Module, str, Any]] = [
        (parent, name, child)
        for parent in model.model.modules()
        for name, child in parent.named_children()
        if hasattr(child, "lora_A")
    ]
    for parent, name, child in adapted:
        child.merge()
        setattr(parent, name, child.get_base_layer())
