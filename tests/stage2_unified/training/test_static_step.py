"""The step on a GPU, as far as a CPU can show it: nothing is read back to the host, and few graphs are compiled."""

import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from medunifier.stage2_unified.model.processing.report_codec import pad_reports
from medunifier.stage2_unified.model.sequences import ImageSpans
from medunifier.stage2_unified.training.build import make_optimizers
from medunifier.stage2_unified.training.collator import report_buckets
from medunifier.stage2_unified.training.config import (
    OBJECTIVES,
    DataConfig,
    DecoderOptimConfig,
    LossWeights,
    Stage2Config,
)
from medunifier.stage2_unified.training.four_objectives import FourObjectives
from medunifier.stage2_unified.training.task import UnifiedTask
from tests.stage2_unified.conftest import BACKBONE, CODES, GRID, make_batch, make_model

RAGGED = {"images": [1, 2, 3, 1, 2, 2], "priors": [0, 1, 0, 2, 0, 1]}
LONGEST = 190


@pytest.fixture(autouse=True)
def _no_graphs():
    torch._dynamo.reset()


@pytest.fixture
def backend(monkeypatch):
    """Return a function that sets the backend of torch.compile."""
    return lambda name: monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=name))


class HostReads(TorchDispatchMode):
    """Record the operations that a GPU would have to be waited for, outside the optimizers."""

    def __init__(self):
        super().__init__()
        self.reads, self.paused = [], False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_", "_unsafe_index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        copies = name == "_to_copy" and kwargs.get("device") is not None
        if not self.paused and (
            masks or copies or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2")
        ):
            self.reads.append(name)
        return function(*args, **kwargs)


@pytest.mark.parametrize("options", [{}, RAGGED | {"statements": 2}])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"bidirectional_images": True}, {"experts": "all"}])
def test_a_step_reads_nothing_back_to_the_host(options, micro_batches, changes, monkeypatch):
    model = make_model(**changes)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro_batches)
    balance = "gradient_norm" if "experts" in changes else "none"
    optim = DecoderOptimConfig(max_grad_norm=1.0, balance=balance, balance_every=1)
    config = Stage2Config(DataConfig("codes"), "tokenizer", "run", optim=optim, ema_decay=0.9)
    objectives, *optimizers = accelerator.prepare(
        FourObjectives(model, LossWeights()), *make_optimizers(model, config.optim)
    )
    processor = SimpleNamespace(vocabulary=model.vocabulary)
    task = UnifiedTask(objectives, optimizers, accelerator, config, None, None, processor, None)
    batches = [make_batch(dropped=(1,), seed=seed, **options) for seed in range(micro_batches)]
    task.step(batches, step=0)  # optimizers make their state
    with HostReads() as counter:
        for optimizer in optimizers:  # AdamW counts its steps on the host
            step = optimizer.optimizer.step

            def uncounted(*args, step=step, **kwargs):
                counter.paused = True
                step(*args, **kwargs)
                counter.paused = False

            monkeypatch.setattr(optimizer.optimizer, "step", uncounted)
        task.step(batches, step=1)
        assert counter.reads == []
        batches[0].report_length.max().item()
        assert batches[0].report[batches[0].report > 3].numel() and counter.reads == ["_local_scalar_dense", "index"]


def gradients(objectives, batch):
    objectives.zero_grad()
    losses = objectives(batch)
    losses["loss"].backward()
    names = dict(objectives.model.named_parameters())
    return losses, {name: parameter.grad.clone() for name, parameter in names.items()}


GENERATED = pytest.param("inductor", False, marks=[
    pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="generated code needs a C++ compiler")
])  # fmt: skip


PLAIN = pytest.param("aot_eager", False, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "checkpointing"), [("aot_eager", True), PLAIN, GENERATED])
def test_compiled_losses_and_gradients_equal_the_eager_ones(name, checkpointing, backend):
    backend(name)
    model = make_model()
    if checkpointing:
        model.gradient_checkpointing_enable()
    objectives = FourObjectives(model, LossWeights())
    batches = (
        [make_batch(dropped=(1,), **RAGGED)] if checkpointing else [make_batch(dropped=(1,)), make_batch(**RAGGED)]
    )
    plain = [gradients(objectives, batch) for batch in batches]
    torch._dynamo.utils.counters.clear()
    objectives.compile_parts()
    for batch, (losses, expected) in zip(batches, plain, strict=True):
        found, gradient = gradients(objectives, batch)
        for name in (*OBJECTIVES, "z", "loss"):
            assert found[name].item() == pytest.approx(losses[name].item(), rel=1e-5), name
        for name, value in expected.items():
            assert (gradient[name] - value).abs().max() <= 1e-5 * value.abs().max(), name
    assert not torch._dynamo.utils.counters["graph_break"]


def varied_batch(generator, model, buckets):
    """Return studies of 5 to 190 ids, one or two images and at most one prior, padded as in a training."""
    studies, vocabulary = 4, model.vocabulary
    reports = [generator.integers(0, 40, generator.integers(5, LONGEST + 1)).tolist() for _ in range(studies)]
    if generator.random() < 0.5:
        reports = [report[: generator.integers(5, 60)] for report in reports]
    report, length = pad_reports(reports, vocabulary["<pad>"], buckets)
    view = torch.full((studies, 2), vocabulary.view("PA"))
    view[1:, 1] = torch.from_numpy(generator.choice([vocabulary.view("AP"), vocabulary["<pad>"]], 3))
    prior = torch.from_numpy(generator.choice([vocabulary.view("AP"), vocabulary["<pad>"]], (studies, 1)))
    codes, prior_codes = (
        torch.from_numpy(generator.integers(0, CODES, (studies, count, GRID[0] * GRID[1]))) for count in (2, 1)
    )
    images = ImageSpans(codes, view, prior_codes, prior)
    batch = make_batch(studies=studies, statements=2)
    return replace(batch, images=images, report=report, report_length=length, negative_seed=int(length.sum()))


def test_fifty_steps_of_varied_studies_compile_at_most_six_graphs_a_function(backend):
    graphs = {}

    def counting(graph, inputs):
        code = (
            "layer"
            if any(
                "q_proj" in str(node.name) or "q_proj" in str(node.meta.get("nn_module_stack", ""))
                for node in graph.graph.nodes
            )
            else "loss"
        )
        graphs[code] = graphs.get(code, 0) + 1
        return graph

    backend(counting)
    torch._dynamo.utils.counters.clear()
    model = make_model(
        text_config=BACKBONE | {"num_hidden_layers": 3, "max_position_embeddings": 512}, max_report_tokens=LONGEST
    )
    objectives, generator = FourObjectives(model, LossWeights()), np.random.default_rng(0)
    buckets = report_buckets(generator.integers(5, LONGEST + 1, 300), 4, LONGEST)
    objectives.compile_parts()
    widths = set()
    for _ in range(50):
        batch = varied_batch(generator, model, buckets)
        widths.add(batch.report.shape[1])
        objectives(batch)
    assert len(widths) == 3, "the batches differ too little"
    assert set(graphs) == {"layer", "loss"} and max(graphs.values()) <= 6, graphs
    assert not torch._dynamo.utils.counters["graph_break"]


def test_buckets_are_few_hold_all_reports_and_pad_little():
    generator = np.random.default_rng(0)
    lengths = generator.normal(70, 25, 400).clip(5, 190).astype(int)
    buckets = report_buckets(lengths, 64, 192)
    assert len(buckets) == 3 and buckets[-1] == 192 and list(buckets) == sorted(buckets)
    longest = generator.choice(lengths, (500, 64)).max(axis=1)
    padded = np.array([next(width for width in buckets if width >= length) for length in longest])
    assert padded.mean() < 1.1 * longest.mean()
    assert report_buckets([3, 4], 8, 5) == (5,)
    assert report_buckets([500], 8, 192)[-1] == 192
