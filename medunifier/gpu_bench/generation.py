"""Measurements of generation: images with guidance, the same by stock ``generate()``, and reports."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from medunifier.gpu_bench.measure import calls_within, compile_seconds, memory, reset_memory, time_calls, warm_up
from medunifier.gpu_bench.sizes import Figures, Measurement, Setting
from medunifier.gpu_bench.unified import Built, build
from medunifier.stage2_unified.export.causal_lm import generation_configs, to_causal_lm
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.generation.reports import generate_reports
from medunifier.stage2_unified.inference.pipeline import COMPILE_FROM, MedUnifierPipeline
from medunifier.stage2_unified.model.sequences import ImageSpans
from medunifier.stage2_unified.model.vocabulary import EOS, UNCOND

WORDS, GUIDANCE, TOP_K = 60, 2.0, 100
_MOST_CALLS = 5


def _batches(setting: Setting) -> tuple[int, int]:
    return 1, setting.sizes.batch


def _built(setting: Setting) -> Built:
    """Return the model that generates in commands with many studies: its step is compiled, unlike for a training."""
    built = build(setting)
    pipeline = MedUnifierPipeline(built.model, built.processor, setting.device)
    pipeline.expect(COMPILE_FROM)
    return replace(built, model=pipeline.decoder)


def _prompt(built: Built, batch: int, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, T) reports, their (B,) lengths and (B,) views."""
    vocabulary, device = built.model.vocabulary, setting.device
    words = min(WORDS, built.config.data.max_report_tokens)
    return (
        torch.randint(0, vocabulary.text_size, (batch, words), device=device),
        torch.full((batch,), words, device=device),
        torch.full((batch,), vocabulary.view("PA"), device=device),
    )


def _measure(
    rows: dict[str, tuple[int, Callable[[int], Any]]], per_call: dict[str, Any], setting: Setting, part: float = 1.0
) -> Measurement:
    """Warm up, yield and measure calls that each generate a batch, or the fraction ``part`` of it."""
    warm = {name: warm_up(call, 2, setting.device) for name, (_, call) in rows.items()}
    yield
    results = {}
    for name, (batch, call) in rows.items():
        reset_memory(setting.device)
        calls = calls_within(setting.sizes.seconds, warm[name][-1], _MOST_CALLS)
        seconds = time_calls(call, calls, setting.device) / part
        details = {
            "batch": batch,
            "seconds_per_call": seconds,
            **per_call,
            **memory(setting.device),
            "compile_s": compile_seconds(warm[name], seconds * part),
        }
        results[name] = Figures(batch / seconds, details)
    return results


def images(setting: Setting) -> Measurement:
    """Measure images/s with guidance, for one study and for a batch."""
    built = _built(setting)

    def call(batch: int) -> Callable[[int], Tensor]:
        prompt, seeds = _prompt(built, batch, setting), torch.arange(batch)
        return lambda _: generate_images(built.model, *prompt, seeds=seeds, guidance=GUIDANCE, top_k=TOP_K)

    rows = {
        f"images_{number}": (batch, call(batch)) for number, batch in zip((1, 64), _batches(setting), strict=True)
    }
    results = yield from _measure(rows, {"codes": built.model.config.image_tokens}, setting)
    return results


@torch.no_grad()
def _stock_call(built: Built, stock: Any, batch: int, codes: int, setting: Setting) -> Callable[[int], Tensor]:
    report, length, view = _prompt(built, batch, setting)
    model = built.model

    def prompt_ids(report: Tensor, length: Tensor) -> Tensor:
        return model.sequences.text_first(report, length, next_view=view)[0].ids

    ids = prompt_ids(report, length)
    negative = prompt_ids(torch.full_like(report[:, :1], model.vocabulary[UNCOND]), torch.ones_like(length))
    _, image_config = generation_configs(model.config)
    config = GenerationConfig(
        **image_config.to_diff_dict()
        | {"min_new_tokens": codes, "max_new_tokens": codes, "top_k": TOP_K, "guidance_scale": GUIDANCE},
        cache_implementation="static",
    )
    return lambda _: stock.generate(
        ids, attention_mask=torch.ones_like(ids), negative_prompt_ids=negative, generation_config=config
    )


def images_stock(setting: Setting) -> Measurement:
    """Measure the same by ``generate()`` of the exported causal LM with a static cache, on the first codes."""
    built = build(setting)
    built.model.eval()
    stock = to_causal_lm(built.model).to(torch.bfloat16)
    codes, every = setting.sizes.peer_codes, built.model.config.image_tokens
    rows = {
        f"images_{number}_stock": (batch, _stock_call(built, stock, batch, codes, setting))
        for number, batch in zip((1, 64), _batches(setting), strict=True)
    }
    results = yield from _measure(rows, {"codes": codes, "of_codes": every}, setting, codes / every)
    return results


def reports(setting: Setting) -> Measurement:
    """Measure reports/s of a fixed length, greedy, for one study and for a batch."""
    built, tokens = _built(setting), setting.sizes.report_tokens
    # Its logit is then 0 and never the largest of thousands: every report has all tokens.
    with torch.no_grad():
        built.model.lm_head.weight[built.model.vocabulary[EOS]] = 0
    image_codes = torch.randint(
        0, built.tokenizer.codebook_size, (setting.sizes.batch, built.model.config.image_tokens)
    )

    def call(batch: int) -> Callable[[int], Any]:
        view = torch.full((batch,), built.model.vocabulary.view("PA"))
        spans = ImageSpans.of(image_codes[:batch], view).to(torch.device(setting.device))
        return lambda _: generate_reports(built.model, built.processor.codec, spans, max_new_tokens=tokens)

    rows = {
        f"reports_{number}": (batch, call(batch)) for number, batch in zip((1, 64), _batches(setting), strict=True)
    }
    results = yield from _measure(rows, {"tokens": tokens}, setting)
    return results
