"""Radiographs drawn a second, with guidance: ours beside stock ``generate()`` on the exported causal LM.

The peer is ``transformers``' own: ``guidance_scale`` with ``negative_prompt_ids`` and the image codes alone allowed,
the same prompts, the same number of codes. It takes one negative prompt that all rows share, as ours do.
"""

from functools import partial

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from medunifier.bench import BenchConfig, Row, load_benchmark, paired
from medunifier.stage2_unified.export.causal_lm import generation_configs, to_causal_lm
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.vocabulary import UNCOND

TEXT, CODES, GRID, WORDS, GUIDANCE = 4096, 4096, (16, 16), 60, 2.0
TARGETS = {1: 1.5, 8: 1.8}


def rows(config: BenchConfig) -> list[Row]:
    """A row a batch size: images/s, float32, top-k 100."""
    torch.manual_seed(0)
    model = _model().eval()
    stock = to_causal_lm(model)
    table = []
    for batch, target in TARGETS.items():
        prompt = _prompts(model, batch)
        table.append(
            paired(
                f"images of {model.config.image_tokens} codes with guidance, batch {batch}, images/s",
                partial(ours, model, prompt),
                partial(peer, model, stock, prompt),
                config,
                target,
                units=batch,
            )
        )
    return table


def _model() -> MedUnifierForConditionalGeneration:
    backbone = load_benchmark("stage2").BACKBONE
    return MedUnifierForConditionalGeneration(
        MedUnifierConfig(text_config=backbone, text_size=TEXT, codebook_size=CODES, grid=GRID)
    )


def _prompts(model: MedUnifierForConditionalGeneration, batch: int) -> dict[str, Tensor]:
    return {
        "report": torch.randint(0, model.vocabulary.text_size, (batch, WORDS)),
        "report_length": torch.full((batch,), WORDS),
        "view": torch.full((batch,), model.vocabulary.view("PA")),
    }


def ours(model: MedUnifierForConditionalGeneration, prompt: dict[str, Tensor], temperature: float = 1.0) -> Tensor:
    """(B, N) codes."""
    return generate_images(
        model,
        prompt["report"],
        prompt["report_length"],
        prompt["view"],
        seeds=torch.arange(len(prompt["view"])),
        guidance=GUIDANCE,
        temperature=temperature,
        top_k=100,
    )


def _prompt_ids(
    model: MedUnifierForConditionalGeneration, report: Tensor, report_length: Tensor, view: Tensor
) -> Tensor:
    return model.sequences.text_first(report, report_length, next_view=view)[0].ids


def peer(
    model: MedUnifierForConditionalGeneration,
    stock: PreTrainedModel,
    prompt: dict[str, Tensor],
    temperature: float = 1.0,
) -> Tensor:
    """(B, N) codes by stock ``generate()``."""
    ids = _prompt_ids(model, **prompt)
    negative = torch.full((len(ids), 1), model.vocabulary[UNCOND])
    without = _prompt_ids(model, negative, torch.ones(len(ids), dtype=torch.long), prompt["view"])
    _, drawing = generation_configs(model.config)
    usual = {"do_sample": True, "temperature": temperature, "top_k": 100} if temperature else {"do_sample": False}
    drawn: Tensor = stock.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        negative_prompt_ids=without,
        generation_config=GenerationConfig(**{**drawing.to_diff_dict(), **usual, "guidance_scale": GUIDANCE}),
    )
    return drawn[:, ids.shape[1] :] - model.vocabulary.offset
