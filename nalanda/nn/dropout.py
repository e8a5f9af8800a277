"""Dropout (Srivastava et al. 2014), in one place.

dropout = Dropout(0.1)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """While training, zeroes each number with `probability` and scales the rest to keep the mean."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out."""
        if not self.training or self.probability == 0.0:
            return x
        return F.dropout(x, self.probability)
