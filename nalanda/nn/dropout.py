"""Dropout (Srivastava et al. 2014), in one place.

dropout = Dropout(0.1)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout_cpu(x: Tensor, probability: float) -> Tensor:
    """F.dropout with 16 random bits a number (the probability is rounded to 1/65536) where it draws 32.

    For 2000 x 192, forward and backward: 1.5 ms, F.dropout 3.5 ms.
    """
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), 2**63 - 1)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = round(probability * 2**16)
    keep = (bits >= dropped - 2**15).to(x.dtype)
    return x * keep.mul_(2**16 / (2**16 - dropped))


def drop(x: Tensor, probability: float) -> Tensor:
    """Zeroes each number with `probability` and scales the rest, in the way that is fastest where `x` lies."""
    if probability == 0.0:
        return x
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return dropout_cpu(x, probability)
    return F.dropout(x, probability)


class Dropout(nn.Module):
    """While training, zeroes each number with `probability` and scales the rest to keep the mean."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out."""
        return drop(x, self.probability if self.training else 0.0)
