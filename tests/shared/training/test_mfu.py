"""The peak FLOP/s that MFU refers to, and how the loop turns amounts into rates."""

import pytest
import torch

from medunifier.shared.training import hardware as peak
from medunifier.shared.training import loop
from medunifier.shared.training.loop import LoopConfig


def test_the_peak_of_this_machine_is_measured_once(monkeypatch):
    flops = peak.peak_flops("no")
    monkeypatch.setattr(peak, "_measured", None)  # a second measurement would fail
    assert flops == peak.peak_flops("no") > 1e8


def test_the_measurement_multiplies_random_values_and_leaves_the_random_numbers_of_the_training(monkeypatch):
    multiplied, product = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: multiplied.append(a) or product(a, b))
    before = torch.get_rng_state()
    peak._measured("cpu", torch.float32, rounds=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert float(multiplied[0].std()) == pytest.approx(1, abs=0.01)


def test_a_gpu_that_the_table_knows_is_not_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    monkeypatch.setattr(peak, "_measured", lambda device, dtype: (device, dtype))
    assert peak.peak_flops.__wrapped__("bf16") == 756e12
    assert peak.peak_flops.__wrapped__("no") == ("cuda", torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card of next year")
    assert peak.peak_flops.__wrapped__("bf16") == ("cuda", torch.bfloat16)


def test_amounts_of_a_step_become_rates(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(loop, "peak_flops", lambda precision: 1000.0)
    meter = loop._Meter(LoopConfig(batch_size=3))
    for tokens in (10.0, 30.0):
        meter.add({"loss": 1.0, "tokens": tokens, "flop": 50 * tokens})
    now[0] = 4.0
    figures = meter.read()
    assert figures["tokens_per_s"] == pytest.approx(40 / 4) and figures["samples_per_s"] == pytest.approx(6 / 4)
    assert figures["mfu"] == pytest.approx(50 * 40 / 4 / 1000)
    assert "tokens" not in figures and "flop" not in figures
    meter.add({"loss": 1.0})  # a stage that counts neither
    now[0] = 5.0
    assert not {"tokens_per_s", "mfu"} & set(meter.read())
