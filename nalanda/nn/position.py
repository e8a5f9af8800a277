"""How a stack knows order: vectors added to embeddings, or biases on scores; rotations are in rotary.py.

learned, sinusoidal   one row of a table for each place, added once at the bottom
relative              RelativeBias: one bias per head and distance bucket, made once per forward, added to scores
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nalanda.nn.spec import PositionSpec


def sinusoids(length: int, hidden: int, theta: float = 10_000.0, layout: str = "paper") -> Tensor:
    """(length, hidden) fp32: sines in the first half, cosines in the second.

    Wavelengths from 2 pi up to 2 pi theta: `paper` spaces them by 2/hidden (Vaswani et al. 2017), `tensor2tensor`
    by 1/(hidden/2 - 1), so that the last is reached (tensor2tensor, fairseq).
    """
    half = (hidden + 1) // 2
    step = 2 / hidden if layout == "paper" else 1 / max(half - 1, 1)
    wavelength_D = theta ** (torch.arange(half, dtype=torch.float64, device="cpu") * step)
    angle_TD = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] / wavelength_D
    return torch.cat([angle_TD.sin(), angle_TD.cos()[:, : hidden - half]], dim=1).float()


class LearnedPositions(nn.Module):
    """One trained vector for each position (Devlin et al. 2019)."""

    def __init__(self, spec: PositionSpec, hidden: int) -> None:
        super().__init__()
        self.offset = spec.offset
        self.table = nn.Embedding(spec.max_length + spec.offset, hidden)

    def forward(self, positions_BT: Tensor) -> Tensor:
        """BTD vectors to add."""
        return self.table(positions_BT + self.offset if self.offset else positions_BT)


class SinusoidalPositions(nn.Module):
    """One fixed vector for each position (Vaswani et al. 2017); not part of a saved model."""

    table_TD: Tensor

    def __init__(self, spec: PositionSpec, hidden: int) -> None:
        super().__init__()
        table_TD = sinusoids(spec.max_length + spec.offset, hidden, spec.theta, spec.layout)
        self.register_buffer("table_TD", table_TD[spec.offset :].clone(), persistent=False)

    def forward(self, positions_BT: Tensor) -> Tensor:
        """BTD vectors to add."""
        return nn.functional.embedding(positions_BT, self.table_TD)


ADDED: dict[str, type[LearnedPositions] | type[SinusoidalPositions]] = {
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
}


def buckets(distance: Tensor, count: int, max_distance: int, bidirectional: bool) -> Tensor:
    """T5's bucket of `distance` = key position - query position (Raffel et al. 2020): near ones
    exact, far ones by log. Half of the buckets of a bidirectional stack are for keys to the right.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        count //= 2
        offset = (distance > 0).to(distance.dtype) * count
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = count // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (count - exact)).to(distance.dtype)).clamp(max=count - 1)
    return offset + torch.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """One learned bias per head and distance bucket, shared by all blocks of a stack (Raffel et al. 2020)."""

    def __init__(self, spec: PositionSpec, heads: int, bidirectional: bool) -> None:
        super().__init__()
        self.max_distance = spec.max_distance
        self.bidirectional = bidirectional
        self.table = nn.Embedding(spec.buckets, heads)

    def forward(self, distance_BTS: Tensor) -> Tensor:
        """(B or 1, H, T, S) from key position - query position."""
        bucket_BTS = buckets(distance_BTS, self.table.num_embeddings, self.max_distance, self.bidirectional)
        return self.table(bucket_BTS).permute(0, 3, 1, 2)
