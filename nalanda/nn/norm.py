"""Normalizations of the hidden axis, with their statistics in fp32 whatever the compute type.

norm = build_norm(NormSpec(kind="rms", eps=1e-6), hidden)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nalanda.nn.spec import NormSpec


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016)."""

    def __init__(self, spec: NormSpec, width: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if spec.bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in the normalized axis; same shape out."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, spec: NormSpec, width: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in the normalized axis; same shape and type out."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer": LayerNorm, "rms": RMSNorm}


def build_norm(spec: NormSpec, width: int) -> nn.Module:
    """The normalization that `spec` describes, over an axis of `width`."""
    return NORMS[spec.kind](spec, width)
