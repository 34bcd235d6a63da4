"""Measurements of generation: images with guidance, the same by stock ``generate()``, and reports."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from medunifier.gpu_bench.measure import Warm, Work, measure, warm_up
from medunifier.gpu_bench.sizes import Figures, Measurement, Setting
from medunifier.gpu_bench.unified import Built, build
from medunifier.shared.training.config import use_compile
from medunifier.stage2_unified.export.causal_lm import generation_configs, to_causal_lm
from medunifier.stage2_unified.generation.decoding import compile_step
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.generation.reports import generate_reports
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.model.sequences import ImageSpans
from medunifier.stage2_unified.model.vocabulary import EOS, UNCOND

WORDS, GUIDANCE, TOP_K = 60, 2.0, 100


def _built(setting: Setting) -> Built:
    """Return the model that generates in commands with many studies: its step is compiled, unlike for a training."""
    built = build(setting)
    decoder = MedUnifierPipeline(built.model, built.processor, setting.device).decoder
    if use_compile(setting.compile, setting.device):
        compile_step(decoder)
    return replace(built, model=decoder)


def _prompt(built: Built, batch: int, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, T) reports, their (B,) lengths and (B,) views."""
    vocabulary, device = built.model.vocabulary, setting.device
    words = min(WORDS, built.config.data.max_report_tokens)
    return (
        torch.randint(0, vocabulary.text_size, (batch, words), device=device),
        torch.full((batch,), words, device=device),
        torch.full((batch,), vocabulary.view("PA"), device=device),
    )


def _measure(rows: dict[str, tuple[int, Work]], setting: Setting, part: float = 1.0, **per_call: Any) -> Measurement:
    """Warm up, yield and measure calls that each generate a batch, or the fraction ``part`` of it."""
    warm = {name: warm_up(call, 2, setting.device) for name, (_, call) in rows.items()}
    graphs = sum(found.graphs for found in warm.values())  # the rows share graphs: a later one may compile none
    yield
    results = {}
    for name, (batch, call) in rows.items():
        seconds, details = measure(call, Warm(warm[name].seconds, graphs), setting)
        results[name] = Figures(batch / seconds * part, {"batch": batch, **per_call, **details})
    return results


def images(setting: Setting) -> Measurement:
    """Measure images/s with guidance, for one study and for a batch."""
    built = _built(setting)

    def call(batch: int) -> tuple[int, Work]:
        prompt, seeds = _prompt(built, batch, setting), torch.arange(batch)
        return batch, lambda _: generate_images(built.model, *prompt, seeds=seeds, guidance=GUIDANCE, top_k=TOP_K)

    rows = {"images_1": call(1), "images_64": call(setting.sizes.batch)}
    return _measure(rows, setting, codes=built.model.config.image_tokens)


def images_stock(setting: Setting) -> Measurement:
    """Measure the same by ``generate()`` of the exported causal LM with a static cache, on the first codes.

    Uncompiled: ``generate()`` would compile the conditional pass alone, which takes minutes.
    """
    built = build(setting)
    built.model.eval()
    model, stock = built.model, to_causal_lm(built.model).to(torch.bfloat16)
    codes, every = setting.sizes.peer_codes, model.config.image_tokens
    _, image_config = generation_configs(model.config)
    changed = {"min_new_tokens": codes, "max_new_tokens": codes, "top_k": TOP_K, "guidance_scale": GUIDANCE}
    config = GenerationConfig(
        **image_config.to_diff_dict() | changed, cache_implementation="static", disable_compile=True
    )

    @torch.no_grad()
    def call(batch: int) -> tuple[int, Work]:
        report, length, view = _prompt(built, batch, setting)

        def prompt_ids(report: Tensor, length: Tensor) -> Tensor:
            return model.sequences.text_first(report, length, next_view=view)[0].ids

        ids = prompt_ids(report, length)
        negative = prompt_ids(torch.full_like(report[:, :1], model.vocabulary[UNCOND]), torch.ones_like(length))
        return batch, lambda _: stock.generate(
            ids, attention_mask=torch.ones_like(ids), negative_prompt_ids=negative, generation_config=config
        )

    rows = {"images_1_stock": call(1), "images_64_stock": call(setting.sizes.batch)}
    return _measure(rows, setting, codes / every, codes=codes, of_codes=every)


def reports(setting: Setting) -> Measurement:
    """Measure reports/s of a fixed length, greedy, for one study and for a batch."""
    built, tokens = _built(setting), setting.sizes.report_tokens
    # Its logit is then 0 and never the largest of thousands: every report has all tokens.
    with torch.no_grad():
        built.model.lm_head.weight[built.model.vocabulary[EOS]] = 0
    size = (setting.sizes.batch, built.model.config.image_tokens)
    image_codes = torch.randint(0, built.tokenizer.codebook_size, size)

    def call(batch: int) -> tuple[int, Work]:
        view = torch.full((batch,), built.model.vocabulary.view("PA"))
        spans = ImageSpans.of(image_codes[:batch], view).to(torch.device(setting.device))
        return batch, lambda _: generate_reports(built.model, built.processor.codec, spans, max_new_tokens=tokens)

    return _measure({"reports_1": call(1), "reports_64": call(setting.sizes.batch)}, setting, tokens=tokens)
