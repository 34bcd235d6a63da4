"""Precision of inference: bfloat16 on devices with bfloat16 units, otherwise float32."""

from typing import Literal

import torch

from medunifier.shared.training.hardware import has_bf16

Precision = Literal["auto", "bf16", "float32"]


def resolve_precision(precision: Precision, device: torch.device | str) -> Literal["bf16", "float32"]:
    """Return the precision that ``auto`` selects for a device; other values unchanged."""
    if precision == "auto":
        return "bf16" if has_bf16(device) else "float32"
    return precision


def autocast(device: torch.device | str, precision: Precision = "auto") -> torch.autocast:
    """Return a context that runs convolutions and matrix products in the precision, overriding outer contexts."""
    bf16 = resolve_precision(precision, device) == "bf16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)
