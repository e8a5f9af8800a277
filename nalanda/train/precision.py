"""In which number type a model computes. Weights, gradients and optimizer state are fp32 always.

    kind = resolve("auto", device)            # "bf16" where the hardware has it, else "fp32"
    with autocast(kind, device): ...

A CPU without bf16 instructions emulates them about ten times slower than fp32, so `auto` looks for AVX-512 BF16
or AMX. float16 is not offered: it needs loss scaling, and everything that has it in hardware has bf16 now.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def resolve(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """The type that `precision` means on `device`."""
    if precision == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return precision


def slow_because(precision: str, device: torch.device) -> str:
    """A line for the user where `device` has to emulate what was asked for; empty where not."""
    if precision != "bf16" or has_bf16(device):
        return ""
    return (
        f"precision: bf16: this {device.type.upper()} has no bf16 instructions and emulates them, about ten times "
        "slower than fp32; set precision=auto or precision=fp32"
    )


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context in which forward passes and losses run.

    On CPUs casts of weights are not cached: torch has one cache for the whole process, and lanes would share it.
    """
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=device.type != "cpu")
    return contextlib.nullcontext()
