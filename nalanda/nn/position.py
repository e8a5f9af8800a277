"""How a stack knows order: vectors added to embeddings, rotations of queries and keys, or biases on scores.

learned, sinusoidal   AddedPositions: one row of a table for each place, added once at the bottom
rotary                Rotary.tables(positions) once per forward, `rotate(x, tables)` in each attention
relative              RelativeBias: one bias per head and distance bucket, made once per forward, added to scores
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nalanda.nn.spec import PositionSpec

Tables = tuple[Tensor, Tensor]


def sinusoids(length: int, hidden: int, theta: float = 10_000.0) -> Tensor:
    """(length, hidden) fp32: sines in the first half, cosines in the second, wavelengths of Vaswani et al. 2017."""
    half = (hidden + 1) // 2
    wavelength_D = theta ** (torch.arange(half, dtype=torch.float64) * 2 / hidden)
    angle_TD = torch.arange(length, dtype=torch.float64)[:, None] / wavelength_D
    return torch.cat([angle_TD.sin(), angle_TD.cos()[:, : hidden - half]], dim=1).float()


class LearnedPositions(nn.Module):
    """One trained vector for each position (Devlin et al. 2019)."""

    def __init__(self, spec: PositionSpec, hidden: int) -> None:
        super().__init__()
        self.table = nn.Embedding(spec.max_length, hidden)

    def forward(self, positions_BT: Tensor) -> Tensor:
        """BTD vectors to add."""
        return self.table(positions_BT)


class SinusoidalPositions(nn.Module):
    """One fixed vector for each position (Vaswani et al. 2017); not part of a saved model."""

    table_TD: Tensor

    def __init__(self, spec: PositionSpec, hidden: int) -> None:
        super().__init__()
        self.register_buffer("table_TD", sinusoids(spec.max_length, hidden, spec.theta), persistent=False)

    def forward(self, positions_BT: Tensor) -> Tensor:
        """BTD vectors to add."""
        return nn.functional.embedding(positions_BT, self.table_TD)


ADDED: dict[str, type[LearnedPositions] | type[SinusoidalPositions]] = {
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
}


class Rotary(nn.Module):
    """Rotations by position of pairs (i, i + K/2) of a head's dimensions (Su et al. 2021, in Llama's layout)."""

    frequency_K: Tensor

    def __init__(self, theta: float, dim: int) -> None:
        super().__init__()
        frequency_K = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        self.register_buffer("frequency_K", frequency_K.float(), persistent=False)

    def forward(self, positions_BT: Tensor, dtype: torch.dtype) -> Tables:
        """Cosines and sines, each (B or 1, T, 1, K/2); angles are taken in fp32, then rounded to `dtype`."""
        angle = positions_BT.to(self.frequency_K.dtype)[:, :, None, None] * self.frequency_K
        return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x_BTHK: Tensor, tables: Tables) -> Tensor:
    """Turns each head's vectors by the angles of their places."""
    cos, sin = tables
    one, two = x_BTHK.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


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
