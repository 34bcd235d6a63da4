"""bfloat16 where the device has arithmetic units for it, else float32: the choice of whatever only encodes."""

from typing import Literal

import torch

from medunifier.shared.training.hardware import has_bf16

Precision = Literal["auto", "bf16", "float32"]


def resolve_precision(precision: Precision, device: torch.device | str) -> Literal["bf16", "float32"]:
    """``auto`` decided for a device; the others as they are."""
    if precision == "auto":
        return "bf16" if has_bf16(device) else "float32"
    return precision


def autocast(device: torch.device | str, precision: Precision = "auto") -> torch.autocast:
    """A context in which convolutions and matrix products run in the precision, whatever the context around it."""
    bf16 = resolve_precision(precision, device) == "bf16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)
