"""Image generation with guidance, images/s: ours against stock ``generate()`` on the exported causal LM.

The peer uses ``guidance_scale`` and ``negative_prompt_ids`` of ``transformers``, with only image codes allowed, the
same prompts and the same number of codes. All its sequences share one negative prompt, as in ours.
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
    """Measure images/s for each batch size, in float32 with top-k 100."""
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
    """Generate (B, N) codes."""
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
    """Generate (B, N) codes with stock ``generate()``."""
    ids = _prompt_ids(model, **prompt)
    negative = torch.full((len(ids), 1), model.vocabulary[UNCOND])
    without = _prompt_ids(model, negative, torch.ones(len(ids), dtype=torch.long), prompt["view"])
    _, image_config = generation_configs(model.config)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 100} if temperature else {"do_sample": False}
    generated: Tensor = stock.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        negative_prompt_ids=without,
        generation_config=GenerationConfig(**{**image_config.to_diff_dict(), **sampling, "guidance_scale": GUIDANCE}),
    )
    return generated[:, ids.shape[1] :] - model.vocabulary.offset
