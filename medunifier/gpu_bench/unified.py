"""Measurements of stage 2: the whole training step of two model sizes, and of the stock decoder as their peer."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from medunifier.data.shards.dataset import Sample
from medunifier.gpu_bench.measure import (
    Clock,
    calls_within,
    compile_seconds,
    memory,
    profile,
    reset_memory,
    time_calls,
    warm_up,
)
from medunifier.gpu_bench.sizes import Figures, Measurement, Setting
from medunifier.gpu_bench.tokenizer import random_tokenizer
from medunifier.shared.config import CONFIGS, parse_config
from medunifier.shared.training.loop import FLOP, TOKENS
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import MedUnifierProcessor
from medunifier.stage2_unified.training.build import build_model, build_objectives, make_optimizers
from medunifier.stage2_unified.training.collator import StudyBatch, StudyCollator, report_buckets
from medunifier.stage2_unified.training.config import Stage2Config
from medunifier.stage2_unified.training.muon import Muon
from medunifier.stage2_unified.training.task import UnifiedTask

TEXT = "findings+impression"
_BATCHES = 4  # of other lengths, so that a step that compiles or allocates anew for each is measured as such


@dataclass
class Built:
    """A model of random weights on the device, as a training builds it."""

    config: Stage2Config
    tokenizer: FrozenTokenizer
    model: MedUnifierForConditionalGeneration
    processor: MedUnifierProcessor


def build(setting: Setting, *options: str) -> Built:
    """Return the model of ``base_256`` with further ``options``."""
    tokenizer = random_tokenizer(setting)
    config = parse_config(
        Stage2Config,
        [
            f"--config={CONFIGS / 'stage2' / 'base_256.yaml'}",
            "--data.shards=-",
            "--tokenizer=-",
            "--run_dir=-",
            "--loop.mixed_precision=bf16",
            f"--loop.batch_size={setting.sizes.batch}",
            *setting.sizes.stage2,
            *options,
        ],
    )
    words = word_tokenizer(config.text.vocabulary_size)
    model = build_model(config, words, tokenizer, TEXT).to(setting.device)
    return Built(config, tokenizer, model, MedUnifierProcessor(words, tokenizer, model.config))


def word_tokenizer(size: int) -> PreTrainedTokenizerBase:
    """Return a text tokenizer of ``size`` invented words, so that a report's length in ids is known."""
    words = Tokenizer(models.WordLevel({_word(number): number for number in range(size)}, unk_token=_word(0)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def _word(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in f"{number:05d}")


def study_batches(built: Built, setting: Setting, count: int) -> tuple[list[StudyBatch], tuple[int, ...]]:
    """Return batches as the loader collates them, and the widths to which reports are padded.

    Codes are random, reports have ``shortest`` to ``longest`` ids.
    """
    generator, sizes, data, codec = np.random.default_rng(0), setting.sizes, built.config.data, built.processor.codec
    samples = [(number, _study(number, built, setting, generator)) for number in range(count * sizes.batch)]
    lengths = [len(codec.encode(sample.info["report"])) for _, sample in samples]
    buckets = report_buckets(lengths, sizes.batch, data.max_report_tokens)
    collate = StudyCollator(codec, text_dropout=data.text_dropout, training=True, buckets=buckets)
    device = torch.device(setting.device)
    batches = [samples[begin : begin + sizes.batch] for begin in range(0, len(samples), sizes.batch)]
    return [collate(batch).to(device) for batch in batches], buckets


def _study(number: int, built: Built, setting: Setting, generator: np.random.Generator) -> Sample:
    length = int(generator.integers(setting.sizes.shortest, setting.sizes.longest + 1)) - 2  # without section tokens
    words = [_word(int(word)) for word in generator.integers(0, built.config.text.vocabulary_size, length)]
    report = {"findings": " ".join(words[: length // 2]), "impression": " ".join(words[length // 2 :])}
    codes = generator.integers(0, built.tokenizer.codebook_size, (1, *built.tokenizer.grid), dtype=np.uint16)
    info = {"study_id": str(number), "patient_id": str(number), "views": ["PA"], "report": report}
    return Sample(str(number), info, codes=codes)


def train(setting: Setting) -> Measurement:
    """Measure the training step of ``base_256``: tokens/s, MFU, memory, Muon's share, profile."""
    step, warm, optimizers = _training(build(setting), setting)
    yield
    figures = _step_figures(step, warm, setting)
    muon = _muon_seconds(step, optimizers, setting)
    results = {
        "stage2": figures,
        "stage2_memory": Figures(figures.details["peak_memory_gib"], {"batch": setting.sizes.batch}),
    }
    if muon is not None:
        seconds = figures.details["ms_per_step"] / 1e3
        results["muon"] = Figures(muon / seconds, {"ms": muon * 1e3})
    return results


def train_large(setting: Setting) -> Measurement:
    """Measure the MFU of the training step with 24 layers of 1,024."""
    step, warm, _ = _training(build(setting, *setting.sizes.large), setting)
    yield
    figures = _step_figures(step, warm, setting)
    return {"large": Figures(figures.details["mfu"], {"tokens_per_s": figures.value, **figures.details})}


def _training(built: Built, setting: Setting) -> tuple[Callable[[int], Any], list[float], list[Any]]:
    """Return the warmed-up step over batches in the device's memory, the warm-up's seconds, and the optimizers."""
    config = built.config
    accelerator = Accelerator(cpu=setting.device == "cpu", mixed_precision=config.loop.mixed_precision)
    objectives = build_objectives(built.model, config, accelerator.device)
    unprepared = make_optimizers(built.model, config.optim)
    prepared, *optimizers = accelerator.prepare(objectives, *unprepared)
    batches, buckets = study_batches(built, setting, _BATCHES)
    unused: Any = SimpleNamespace()
    task = UnifiedTask(
        prepared, optimizers, accelerator, config, unused, None, built.processor, built.tokenizer, buckets=buckets
    )

    def step(number: int) -> Any:
        return task.step([batches[number % _BATCHES]], number)

    return step, warm_up(step, 2 * _BATCHES, setting.device), unprepared


def _step_figures(step: Callable[[int], Any], warm: list[float], setting: Setting) -> Figures:
    calls = calls_within(setting.sizes.seconds, warm[-1], setting.sizes.steps)
    reset_memory(setting.device)
    found: list[Any] = []
    seconds = time_calls(lambda number: found.append(step(number)), calls, setting.device)
    tokens, flop = (float(np.mean([float(figures[name]) for figures in found])) for name in (TOKENS, FLOP))
    details = {
        "batch": setting.sizes.batch,
        "ms_per_step": seconds * 1e3,
        "tokens_per_step": tokens,
        "studies_per_s": setting.sizes.batch / seconds,
        "mfu": flop / seconds / setting.peak,
        **memory(setting.device),
        "compile_s": compile_seconds(warm, seconds),
        "profile": profile(step, setting.device),
    }
    return Figures(tokens / seconds, details)


def _muon_seconds(step: Callable[[int], Any], optimizers: list[Any], setting: Setting) -> float | None:
    """Return the mean seconds of Muon's updates in a step; None if the model is trained without it."""
    clocks, handles = [], []
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            clock = Clock(setting.device)
            clocks.append(clock)
            handles.append(optimizer.register_step_pre_hook(lambda *_, clock=clock: clock.mark()))
            handles.append(optimizer.register_step_post_hook(lambda *_, clock=clock: clock.mark()))
    for number in range(_BATCHES):
        step(number)
    for handle in handles:
        handle.remove()
    return sum(sum(clock.seconds()[::2]) for clock in clocks) / _BATCHES if clocks else None


def train_stock(setting: Setting) -> Measurement:
    """Measure forward and backward pass of the compiled stock decoder with its own loss, as the training's peer."""
    built = build(setting)
    config = type(built.model.config.text_config).from_dict(built.model.config.text_config.to_dict())
    config.vocab_size, config.tie_word_embeddings = len(built.model.vocabulary), False
    config.max_position_embeddings = max(config.max_position_embeddings, setting.sizes.peer_length)
    stock = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(setting.device).train()
    size = (setting.sizes.batch, setting.sizes.peer_length)
    ids = torch.randint(0, len(built.model.vocabulary), size, device=setting.device)
    weights = sum(p.numel() for p in stock.base_model.layers.parameters() if p.dim() == 2)
    del built
    if setting.device == "cuda":
        stock.compile()

    def step(_: int) -> Tensor:
        with torch.autocast(setting.device, torch.bfloat16):
            loss: Tensor = stock(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        stock.zero_grad()
        return loss

    warm = warm_up(step, 3, setting.device)
    yield
    reset_memory(setting.device)
    seconds = time_calls(step, calls_within(setting.sizes.seconds, warm[-1], setting.sizes.steps), setting.device)
    details = {
        "batch": f"{size[0]} x {size[1]}",
        "ms_per_step": seconds * 1e3,
        "mfu": 6 * weights * ids.numel() / seconds / setting.peak,
        **memory(setting.device),
        "compile_s": compile_seconds(warm, seconds),
        "profile": profile(step, setting.device),
    }
    return {"stage2_stock": Figures(ids.numel() / seconds, details)}
