"""The static decoding step: equal to generate() and to decoding without a cache, without host reads."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LogitsProcessorList

from medunifier.stage2_unified.generation import decoding
from medunifier.stage2_unified.generation.bfloat16 import bfloat16_copy
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.generation.no_repeats import NoRepeatedWords
from medunifier.stage2_unified.generation.reports import CHECK_EVERY, ReportSampling, _decode, generate_reports
from medunifier.stage2_unified.model.sequences import ImageSpans, left_padded
from medunifier.stage2_unified.model.vocabulary import NEVER_WRITTEN
from tests.stage2_unified.conftest import make_batch, make_model

RAGGED = {"images": [1, 3, 2, 1], "priors": [0, 0, 1, 1]}
WORDS = torch.arange(40) // 2, torch.arange(40) % 3 > 0
HOST_READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select"}


class Codec:
    """Reports as ids."""

    sections = ("findings", "impression")
    word_table = WORDS

    def __init__(self, pad):
        self.pad = pad

    def decode(self, ids):
        while ids and ids[-1] == self.pad:
            ids = ids[:-1]
        return ids


class HostReads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found, self.calls = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        name = func.overloadpacket.__name__
        boolean_index = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in HOST_READS or boolean_index:
            self.found.append(name)
        return func(*args, **kwargs or {})


@pytest.fixture
def steps(monkeypatch):
    """Let each step run under a mode that records host reads; (end, reads) of each step."""
    recorded, plain = [], decoding.DecodingStep._step

    def step(self, model, end):
        with HostReads() as reads:
            plain(self, model, end)
        assert reads.calls > 10
        recorded.append((end, reads.found))

    monkeypatch.setattr(decoding.DecodingStep, "_step", step)
    return recorded


def written(model, images, **generate):
    return generate_reports(model, Codec(model.vocabulary["<pad>"]), images, max_new_tokens=24, **generate)


@pytest.fixture
def model():
    return make_model().eval()


def test_greedy_reports_equal_those_of_generate_with_a_growing_cache(steps, monkeypatch):
    monkeypatch.setattr(decoding, "COLUMNS", 4)  # several buckets
    for changes in ({}, {"bidirectional_images": True}):
        model = make_model(**changes).eval()
        with torch.no_grad():
            model.lm_head.weight[model.vocabulary["<eos>"]] *= -1  # some of the reports end
        processors = {"logits_processor": LogitsProcessorList([NoRepeatedWords(*WORDS)])}
        for options in ({}, RAGGED):
            images = make_batch(studies=4, **options).images
            for section in (None, "impression"):
                steps.clear()
                found = written(model, images, section=section, num_beams=1)
                assert steps and all(not reads for _, reads in steps)
                ends = [end for end, _ in steps]
                assert ends == sorted(ends) and len(set(ends)) > 2
                steps.clear()
                assert found == written(model, images, section=section, **processors)
                assert not steps, "these arguments need generate()"


def test_images_equal_in_one_bucket_and_in_many(model, steps, monkeypatch):
    batch = make_batch(studies=3, images=[2, 1, 2], priors=[1, 1, 0])
    inputs = {name: getattr(batch.images, name) for name in ("view", "prior_codes", "prior_view")}
    inputs |= {"report": batch.report, "report_length": batch.report_length, "seeds": torch.arange(3)}
    found = []
    for columns in (2, 64):
        monkeypatch.setattr(decoding, "COLUMNS", columns)
        steps.clear()
        found.append(generate_images(model, **inputs, top_k=9, top_p=0.9))
        assert len(steps) == 2 * (model.config.image_tokens - 1)
        assert all(not reads for _, reads in steps)
    assert torch.equal(*found)


def decoded(model, images, **changes):
    """Ids of ``_decode`` after the image-first prefix, 40 tokens."""
    settings = ReportSampling(max_new_tokens=40, temperature=0.0, top_k=None, top_p=None, ends=())
    prompts = left_padded(model.sequences.image_first(images))
    return _decode(model, Codec(0), prompts, replace(settings, **changes))


def test_a_report_ends_at_its_stop_id_and_all_of_them_end_the_loop(model, steps):
    images, pad = make_batch(studies=4).images, model.vocabulary["<pad>"]
    endless = decoded(model, images)
    assert endless.shape == (4, 40) and not (endless == pad).any()
    stops = tuple({int(row[3]) for row in endless})
    steps.clear()
    stopped = decoded(model, images, ends=stops)
    for row, whole in zip(stopped.tolist(), endless.tolist(), strict=True):
        length = 1 + min(whole.index(stop) for stop in stops if stop in whole)
        assert row == whole[:length] + [pad] * (len(row) - length)
    assert 3 <= len(steps) == CHECK_EVERY < 39


def test_sampled_tokens_follow_the_distribution_and_the_seed(model):
    images = make_batch(studies=1).images
    repeated = ImageSpans(images.codes.repeat(4000, 1, 1), images.view.repeat(4000, 1))
    torch.manual_seed(0)
    first = decoded(model, repeated, max_new_tokens=2, temperature=0.7, top_k=5)[:, 0]
    ids = model.sequences.image_first(images).ids
    logits = model(input_ids=ids).logits[0, -1].detach()
    logits[torch.tensor([model.vocabulary[name] for name in NEVER_WRITTEN])] = -torch.inf
    best = logits.topk(5)
    expected = torch.zeros_like(logits).scatter(0, best.indices, (best.values / 0.7).softmax(0))
    assert (torch.bincount(first, minlength=len(logits)) / 4000 - expected).abs().max() < 0.03

    batch = make_batch(studies=4, **RAGGED).images
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(written(model, batch, do_sample=True, top_k=0))
    assert runs[0] == runs[1] != written(model, batch, do_sample=True, top_k=0)
    torch.manual_seed(3)
    alone = ImageSpans(batch.codes[:1], batch.view[:1], batch.prior_codes[:1], batch.prior_view[:1])
    assert written(model, alone, do_sample=True, top_k=0) == runs[0][:1]


def test_the_bfloat16_copy_keeps_the_frequencies_of_the_rotary_embedding(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder = bfloat16_copy(model)
    assert {value.dtype for value in decoder.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(decoder.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    with torch.no_grad():
        decoder.lm_head.weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    images = make_batch(studies=2).images
    assert len(written(bfloat16_copy(model), images)) == 2


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


@CUDA
def test_captured_steps_equal_plain_ones_and_are_captured_once(model, monkeypatch):
    model, batch = model.cuda(), make_batch(studies=4, **RAGGED)
    prompts = {name: getattr(batch, name).cuda() for name in ("report", "report_length")}
    prompts |= {"view": batch.images.view.cuda(), "seeds": torch.arange(4)}
    captures, capture = [], decoding.DecodingStep._capture
    monkeypatch.setattr(decoding.DecodingStep, "_capture", lambda *args: captures.append(args[2]) or capture(*args))

    def results():
        return generate_images(model, **prompts).tolist(), written(model, batch.images.to("cuda"))

    captured = results()
    seen = len(captures)
    assert seen > 0 and results() == captured and len(captures) == seen
    monkeypatch.setattr(decoding.DecodingStep, "_replay", decoding.DecodingStep._step)
    assert results() == captured


def test_compiled_layers_give_the_same_codes_and_tokens_from_few_graphs(model, monkeypatch):
    # The whole compiler without its code generation, which needs a C++ compiler and minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(decoding, "COLUMNS", 4)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    batch = make_batch(studies=4, **RAGGED)
    prompts = {"report": batch.report, "report_length": batch.report_length, "view": batch.images.view}

    def results():
        return generate_images(model, **prompts, seeds=torch.arange(4)).tolist(), written(model, batch.images)

    plain = results()
    decoding.compile_step(model)
    assert results() == plain
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    assert written(bfloat16_copy(model), batch.images)
