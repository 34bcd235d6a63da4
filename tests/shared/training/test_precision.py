"""bfloat16 is chosen where the device has it, and float32 is float32 whatever stands around it."""

import pytest
import torch

from medunifier.shared.training import hardware as machine
from medunifier.shared.training.precision import autocast, resolve_precision


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", "bf16"),
        ("flags\t\t: fpu avx2 avx512f amx_bf16 amx_tile", "bf16"),
        ("Features\t: fp asimd bf16 i8mm", "bf16"),
        ("flags\t\t: fpu avx2 avx512f", "float32"),
        ("", "float32"),
    ],
)
def test_auto_is_bf16_on_a_cpu_with_instructions_for_it(line, expected, monkeypatch):
    monkeypatch.setattr(machine, "_lines", lambda path: [line])
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("bf16", "cpu") == "bf16" and resolve_precision("float32", "cpu") == "float32"


@pytest.mark.parametrize(("major", "expected"), [(7, "float32"), (8, "bf16"), (9, "bf16")])
def test_auto_is_bf16_on_a_gpu_from_ampere(major, expected, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert resolve_precision("auto", "cuda:0") == expected


def test_a_named_precision_holds_inside_another_autocast():
    a = torch.ones(4, 4)
    with autocast("cpu", "bf16"):
        assert (a @ a).dtype == torch.bfloat16
        with autocast("cpu", "float32"):
            assert (a @ a).dtype == torch.float32
