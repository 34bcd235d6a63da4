"""A training step reads nothing back from the device: the host would wait for it, and then it for the host."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medunifier.shared.training.optimizer_step import FiniteCheck
from tests.stage1_tokenizer.conftest import batch_of_blobs, tiny_task

READS = {
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "bincount",
    "_unique2",
    "unique_dim",
    "equal",
}
"""Operators whose result, or whose shape, the host has to know."""


class HostReads(TorchDispatchMode):
    """Record operators that read from the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator.overloadpacket.__name__
        indices = arguments[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        options = options or {}
        # With a memory format it is the copy of the images to the device, which is the CPU here.
        to_host = name == "_to_copy" and "device" in options and "memory_format" not in options
        if name in READS or by_mask or to_host:
            self.found.append(name)
        return operator(*arguments, **options)


def test_the_mode_sees_the_reads_that_it_looks_for():
    x = torch.arange(4.0)
    calls = {
        "_local_scalar_dense": lambda: float(x.sum()),
        "nonzero": lambda: x.nonzero(),
        "index": lambda: x[x > 1],
        "_to_copy": lambda: x.to("cpu", torch.float64),
        "bincount": lambda: x.long().bincount(minlength=4),
    }
    for name, call in calls.items():
        with HostReads() as reads:
            call()
        assert name in reads.found


@pytest.mark.parametrize("kind", ["cosine_vq", "ema_vq", "vq", "gumbel_vq"])
def test_a_step_reads_nothing_from_the_device(kind):
    task, finite = tiny_task(kind), FiniteCheck()
    batches = [batch_of_blobs(2), batch_of_blobs(4)[2:]]
    for step in range(3):  # without adversarial loss and with it, and one that replaces dead codes
        with HostReads() as reads:
            figures = task.step(batches, step)
            finite.add(figures, step)
        assert reads.found == [], step
    assert "adaptive_weight" in figures and "lecam" in figures
    finite.check()
