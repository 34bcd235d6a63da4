"""Measurements of stage 2: the whole training step of two model sizes, and of the stock decoder as their peer."""

from collections.abc import Generator
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
from medunifier.gpu_bench.measure import Work, mark, measure, seconds_between, warm_up
from medunifier.gpu_bench.sizes import Figures, Measurement, Setting
from medunifier.gpu_bench.tokenizer import random_tokenizer
from medunifier.shared.config import CONFIGS, parse_config
from medunifier.shared.training.config import use_compile
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
    always = "--data.shards=-", "--tokenizer=-", "--run_dir=-", "--loop.mixed_precision=bf16"
    of_setting = f"--loop.batch_size={setting.sizes.batch}", f"--compile={str(setting.compile).lower()}"
    path = CONFIGS / "stage2" / "base_256.yaml"
    config = parse_config(Stage2Config, [f"--config={path}", *always, *of_setting, *setting.sizes.stage2, *options])
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
    figures, step, optimizers = yield from _training(build(setting), setting, _BATCHES)
    graphs = {"graphs": figures.details["graphs"]}
    results = {"stage2": figures, "stage2_memory": Figures(figures.details["peak_memory_gib"], graphs)}
    if muon := [optimizer for optimizer in optimizers if isinstance(optimizer, Muon)]:
        milliseconds = _update_seconds(step, muon[0], setting) * 1e3
        results["muon"] = Figures(milliseconds / figures.details["ms"], {"ms": milliseconds, **graphs})
    return results


def train_large(setting: Setting) -> Measurement:
    """Measure the MFU of the training step with 24 layers of 1,024, on one batch: two graphs fewer for each other."""
    figures, *_ = yield from _training(build(setting, *setting.sizes.large), setting, 1)
    return {"large": Figures(figures.details["mfu"], {"tokens_per_s": figures.value, **figures.details})}


def _training(
    built: Built, setting: Setting, count: int
) -> Generator[None, None, tuple[Figures, Work, list[torch.optim.Optimizer]]]:
    """Build the training of ``count`` batches in the device's memory, as its command does; warm up, yield, measure.

    Returns:
        The figures in tokens/s, the step, and the optimizers.
    """
    config, batch = built.config, setting.sizes.batch
    accelerator = Accelerator(cpu=setting.device == "cpu", mixed_precision=config.loop.mixed_precision)
    objectives = build_objectives(built.model, config, accelerator.device)
    unprepared = make_optimizers(built.model, config.optim)
    prepared, *optimizers = accelerator.prepare(objectives, *unprepared)
    batches, buckets = study_batches(built, setting, count)
    unused: Any = SimpleNamespace()
    task = UnifiedTask(
        prepared, optimizers, accelerator, config, unused, None, built.processor, built.tokenizer, buckets=buckets
    )
    found: list[Any] = []

    def step(number: int) -> None:
        found.append(task.step([batches[number % count]], number))

    warm = warm_up(step, 2 * count + 1, setting.device)
    yield
    found.clear()
    seconds, details = measure(step, warm, setting, profiled=True)
    tokens, flop = (float(np.mean([float(figures[name]) for figures in found])) for name in (TOKENS, FLOP))
    details |= {"batch": batch, "tokens_per_step": tokens, "studies_per_s": batch / seconds}
    details["mfu"] = flop / seconds / setting.peak
    return Figures(tokens / seconds, details), step, unprepared


def _update_seconds(step: Work, optimizer: torch.optim.Optimizer, setting: Setting) -> float:
    """Return the mean seconds of the optimizer's updates in a step."""
    marks: list[Any] = []
    register = optimizer.register_step_pre_hook, optimizer.register_step_post_hook
    hooks = [hook(lambda *_: marks.append(mark(setting.device))) for hook in register]
    for number in range(_BATCHES):
        step(number)
    for hook in hooks:
        hook.remove()
    return sum(seconds_between(marks, setting.device)[::2]) / _BATCHES


def train_stock(setting: Setting) -> Measurement:
    """Measure forward and backward pass of the stock decoder with its own loss, compiled layer by layer.

    The layers share a graph: compiling the model whole takes minutes.
    """
    built, device = build(setting), setting.device
    size = (setting.sizes.batch, setting.sizes.peer_length)
    config = type(built.model.config.text_config).from_dict(built.model.config.text_config.to_dict())
    config.vocab_size, config.tie_word_embeddings = len(built.model.vocabulary), False
    config.max_position_embeddings = max(config.max_position_embeddings, size[1])
    del built
    stock = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).train()
    ids = torch.randint(0, config.vocab_size, size, device=device)
    weights = sum(p.numel() for p in stock.base_model.layers.parameters() if p.dim() == 2)

    def loss_of(hidden: Tensor) -> Tensor:
        loss: Tensor = stock.loss_function(stock.lm_head(hidden), ids, vocab_size=config.vocab_size)
        return loss

    if use_compile(setting.compile, device):
        torch._dynamo.config.recompile_limit = 64
        for layer in stock.base_model.layers:
            layer.compile()
        loss_of = torch.compile(loss_of)

    def step(_: int) -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(stock.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        loss.backward()
        stock.zero_grad()

    warm = warm_up(step, 3, device)
    yield
    seconds, details = measure(step, warm, setting, profiled=True)
    details |= {"batch": f"{size[0]} x {size[1]}", "mfu": 6 * weights * ids.numel() / seconds / setting.peak}
    return {"stage2_stock": Figures(ids.numel() / seconds, details)}
