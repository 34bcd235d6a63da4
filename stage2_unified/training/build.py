"""Build the model, tokenizer and optimizers of a stage-2 training from its configuration; export its model."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from medunifier.shared.artifacts import atomic_folder
from medunifier.shared.report_page.notice import CARD_FINDINGS, MODEL_LIMITS, research_notice
from medunifier.shared.training.config import use_compile
from medunifier.shared.training.distributed import barrier, is_main
from medunifier.shared.training.optimizer_step import LR_SCALE, lr_scale
from medunifier.shared.training.run_folder import RunFolder, read_metrics
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage2_unified.model.backbones import add_adapters, load_backbone, pretrained_config
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.experts import kind_of
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import MedUnifierProcessor
from medunifier.stage2_unified.model.processing.statements import every_phrase
from medunifier.stage2_unified.model.processing.text_tokenizer import load_text_tokenizer, train_text_tokenizer
from medunifier.stage2_unified.model.sequences import longest_sequence
from medunifier.stage2_unified.training.config import (
    OBJECTIVES,
    STATEMENT_LOSSES,
    DecoderOptimConfig,
    Stage2Config,
)
from medunifier.stage2_unified.training.dataset import StudiesWithText
from medunifier.stage2_unified.training.four_objectives import FourObjectives
from medunifier.stage2_unified.training.muon import Muon

GENERATOR = "generator"
"""Key of an optimizer's group: whether its parameters generate images and have no other use."""


def run_text_tokenizer(config: Stage2Config, run: RunFolder, training: StudiesWithText) -> PreTrainedTokenizerBase:
    """Return the run's text tokenizer: trained at the start of a run, loaded from its folder afterwards."""
    existing = config.text.tokenizer or config.model.pretrained
    if existing:
        return load_text_tokenizer(existing)
    folder = run.path / "text_tokenizer"
    if is_main() and not folder.is_dir():
        reports = (text for report in training.reports() for text in report.values())
        texts = chain(reports, every_phrase() if config.data.statements else ())
        with atomic_folder(folder) as partial:
            train_text_tokenizer(texts, config.text.vocabulary_size).save_pretrained(partial)
    barrier()
    return load_text_tokenizer(str(folder))


def model_config(
    config: Stage2Config, text_tokenizer: PreTrainedTokenizerBase, tokenizer: FrozenTokenizer, text_choice: str
) -> MedUnifierConfig:
    """Return the configuration of the model."""
    codes, code_dim = tokenizer.codebook.shape
    height, width = tokenizer.grid
    data = config.data
    longest = longest_sequence(height * width, data.max_report_tokens, data.max_views, data.prior)
    backbone = config.model
    return MedUnifierConfig(
        text_config=pretrained_config(backbone.pretrained, longest)
        if backbone.pretrained
        else backbone.to_transformers(longest),
        text_size=len(text_tokenizer),
        codebook_size=codes,
        code_dim=code_dim,
        grid=tokenizer.grid,
        embedding_dim=config.model.embedding_dim,
        tokenizer_fingerprint=tokenizer.fingerprint,
        max_report_tokens=config.data.max_report_tokens,
        text_choice=text_choice,
        max_views=data.max_views,
        prior=data.prior,
        statements=data.statements > 0,
        bidirectional_images=backbone.bidirectional_images,
        experts=backbone.experts,
    )


def build_model(
    config: Stage2Config, text_tokenizer: PreTrainedTokenizerBase, tokenizer: FrozenTokenizer, text_choice: str
) -> MedUnifierForConditionalGeneration:
    """Return the model with its initial weights."""
    model = MedUnifierForConditionalGeneration(model_config(config, text_tokenizer, tokenizer, text_choice))
    model.set_codebook(tokenizer.codebook)
    if config.model.pretrained:
        load_backbone(model, config.model.pretrained)
    if config.lora.rank:
        add_adapters(model, config.lora.rank, config.lora.alpha)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def build_objectives(
    model: MedUnifierForConditionalGeneration, config: Stage2Config, device: torch.device
) -> FourObjectives:
    """Return the module that is trained, compiled if configured; it can then be sharded or prepared by Accelerate."""
    objectives = FourObjectives(model, config.weights, config.negative_hardness)
    if use_compile(config.compile, device):
        objectives.compile_parts()
    return objectives


def make_optimizers(
    model: MedUnifierForConditionalGeneration, config: DecoderOptimConfig
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the decoder's layers (if configured) and AdamW for the rest.

    Weight decay is on matrices alone, not on norms, biases, embeddings and the logit scale. With experts, the groups
    of what generates images alone have :data:`GENERATOR` set.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if not all(parameter.requires_grad for parameter in model.parameters()):
        embeddings.add(id(model.lm_head.weight))  # with adapters the text rows of both tables are frozen
    in_layers = {id(p) for p in model.model.layers.parameters() if p.dim() == 2} if config.kind == "muon" else set()
    generating = {id(p) for name, p in model.named_parameters() if kind_of(name) == "generated"}
    if model.has_experts:
        generating.add(id(model.lm_head.weight))
    groups: list[dict[str, Any]] = []
    hidden: list[dict[str, Any]] = []
    # The same keys from the beginning on: a sharded checkpoint loads into groups that have them.
    marks = [{GENERATOR: generates, LR_SCALE: 1.0} for generates in (False, True)] if model.has_experts else [{}]
    for mark in marks:
        parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and mark.get(GENERATOR, False) == (id(parameter) in generating)
        ]
        rest = [p for p in parameters if id(p) not in in_layers]
        decayed = [p for p in rest if p.dim() > 1 and id(p) not in embeddings]
        undecayed = [p for p in rest if p.dim() <= 1 or id(p) in embeddings]
        groups += [
            {"params": decayed, "weight_decay": config.weight_decay, **mark},
            {"params": [p for p in undecayed if p.dim()], "weight_decay": 0.0, **mark},
        ]
        # The logit scale has its own group: FSDP shards all parameters but this one, and a fused update cannot mix
        # both.
        if scalars := [p for p in undecayed if not p.dim()]:
            groups.append({"params": scalars, "weight_decay": 0.0, **mark})
        if matrices := [p for p in parameters if id(p) in in_layers]:
            hidden.append({"params": matrices, **mark})
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    if model.has_experts:
        _scale_text_rows(adamw, model.lm_head.weight, model.vocabulary.offset)
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if hidden:
        optimizers.append(Muon(hidden, lr=config.lr, weight_decay=config.weight_decay))
    return optimizers


def _scale_text_rows(optimizer: torch.optim.Optimizer, head: Tensor, count: int) -> None:
    """Let the first ``count`` rows of the head learn at the rate of the first group: both belong to reading."""
    before: list[Tensor] = []

    def keep(*_: Any) -> None:
        before[:] = [head.detach().clone()] if lr_scale(optimizer.param_groups[0]) != 1 else []

    @torch.no_grad()
    def blend(*_: Any) -> None:
        if before:
            is_text = torch.arange(len(head), device=head.device)[:, None] < count
            if isinstance(head, DTensor):
                is_text = distribute_tensor(is_text, head.device_mesh, head.placements)
            slower = before[0].lerp(head, lr_scale(optimizer.param_groups[0]))
            head.copy_(torch.where(is_text, slower, head))
            before.clear()

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(blend)


def export_model(
    model: MedUnifierForConditionalGeneration,
    processor: MedUnifierProcessor,
    folder: Path,
    config: Stage2Config,
    source: str,
    findings: Sequence[str] = (),
) -> None:
    """Write the Hugging Face folder (weights, both tokenizers, a model card), complete or not at all.

    ``source`` and ``findings`` are those of the training data, for the card.
    """
    logging.disable_progress_bar()
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / "README.md").write_text(_card(model, config, source, findings, folder.parent), encoding="utf-8")


def _card(
    model: MedUnifierForConditionalGeneration, config: Stage2Config, source: str, findings: Sequence[str], run: Path
) -> str:
    last = [line for line in read_metrics(run) if "validation/loss" in line]
    figures = "\n".join(
        f"| {name} | {last[-1][f'validation/{name}']:.3f} |"
        for name in (*OBJECTIVES, "matching_accuracy", *STATEMENT_LOSSES)
        if last and f"validation/{name}" in last[-1]
    )
    text, size = model.config.text_config, model.num_parameters() / 1e6
    origin = f", initialised from `{Path(config.model.pretrained).name}`" if config.model.pretrained else ""
    origin += f", experts by kind of token ({model.config.experts})" if model.has_experts else ""
    prior = ", and one of the prior study" if model.config.prior else ""
    listed = f"{CARD_FINDINGS}{', '.join(findings)}\n" if findings else ""
    phantom = "\nThe data were **phantoms** (procedural radiographs), not patients.\n" if source == "phantom" else ""
    return f"""---
library_name: transformers
tags: [chest-radiograph, report-generation, image-generation, research-only]
---
# A unified model of chest radiographs and reports

{research_notice(MODEL_LIMITS, markdown=True)}

`from medunifier import MedUnifierForConditionalGeneration` registers it with `transformers`.

- decoder: {text.model_type}, {text.num_hidden_layers} layers of {text.hidden_size}, {size:.1f} M parameters{origin}
- image codes: {model.config.grid[0]} x {model.config.grid[1]} of {model.config.codebook_size}, tokenizer fingerprint
  `{model.config.tokenizer_fingerprint}`
- images: at most {model.config.max_views} of a study{prior}
- text: {model.config.text_choice}, at most {model.config.max_report_tokens} ids
- data: source `{source}`; {config.loop.steps} steps of {config.loop.global_batch()} studies
{listed}{phantom}
## Validation losses (nats) and matching accuracy at the last step

| | |
|---|---|
{figures}
"""
