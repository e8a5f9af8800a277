"""Rotary positions: queries and keys are turned by angles that grow with their places (Su et al. 2021).

    spec = RotarySpec(theta=500_000.0, scaling=Llama3Scaling(factor=8.0, original_length=8192))
    rotary = Rotary(spec, dim=64)
    tables = rotary(positions_BT, torch.float32)      # once per forward, for all layers that share the spec
    q_BTHK = rotate(q_BTHK, tables)                   # pairs (i, i + K/2) of a head's dimensions, Llama's layout

A model trained on short texts reads longer ones when its rotations are slowed down:

    linear     all by one factor (Chen et al. 2023)
    ntk        the base is raised, so that fast rotations stay and slow ones slow down by the factor
    dynamic    ntk with a factor that grows with the document, 1 up to the trained length
    yarn       slow rotations by the factor, fast ones not, a ramp between; scores sharpened (Peng et al. 2023)
    llama3     the same idea with thresholds by wavelength (Llama 3.1)
    longrope   a factor for each rotation, one set for short texts, one for long (Ding et al. 2024)
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nalanda.config import Config

Tables = tuple[Tensor, Tensor]


class LinearScaling(Config):
    """Every angle divided by `factor`."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0)

    def frequencies(self, theta: float, dim: int, length: int | None) -> Tensor:
        """K/2 angles per place, fp32."""
        return plain_frequencies(theta, dim) / self.factor


class NtkScaling(Config):
    """The base times factor^(K/(K-2)): the slowest rotation is slowed by `factor`, the fastest not at all."""

    kind: Literal["ntk"] = "ntk"
    factor: float = Field(ge=1)

    def frequencies(self, theta: float, dim: int, length: int | None) -> Tensor:
        """K/2 angles per place, fp32."""
        return plain_frequencies(theta * self.factor ** (dim / (dim - 2)), dim)


class DynamicScaling(Config):
    """ntk whose factor is 1 up to `original_length` places and grows with the document beyond."""

    kind: Literal["dynamic"] = "dynamic"
    factor: float = Field(gt=0)
    original_length: int = Field(gt=0)

    def frequencies(self, theta: float, dim: int, length: int | None) -> Tensor:
        """K/2 angles per place, fp32, for texts of `length` places."""
        ratio = max(length or 0, self.original_length) / self.original_length
        return plain_frequencies(theta * (self.factor * ratio - self.factor + 1) ** (dim / (dim - 2)), dim)


class YarnScaling(Config):
    """Rotations of more than `beta_fast` turns in the trained length stay, of fewer than `beta_slow` are slowed."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(gt=0)
    original_length: int = Field(gt=0)
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    attention_factor: float | None = Field(default=None, ge=0, description="None: 0.1 ln(factor) + 1")
    truncate: bool = Field(default=True, description="the ramp's ends are whole dimensions")

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def frequencies(self, theta: float, dim: int, length: int | None) -> Tensor:
        """K/2 angles per place, fp32."""

        def dimension(turns: float) -> float:
            return dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        width = high - low or 0.001
        ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / width
        slowed = ramp.clamp(0, 1)
        plain = plain_frequencies(theta, dim)
        return plain / self.factor * slowed + plain * (1 - slowed)


class Llama3Scaling(Config):
    """Wavelengths over original/low are slowed by `factor`, under original/high stay, a ramp between."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0)
    original_length: int = Field(gt=0)
    low_frequency_factor: float = Field(default=1.0, gt=0)
    high_frequency_factor: float = Field(default=4.0, gt=0)

    def frequencies(self, theta: float, dim: int, length: int | None) -> Tensor:
        """K/2 angles per place, fp32."""
        plain = plain_frequencies(theta, dim)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        turns = self.original_length * plain / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1) if high != low else (turns >= high).float()
        return plain * kept + plain / self.factor * (1 - kept)


class LongRopeScaling(Config):
    """Each rotation by its own divisor: `short` up to `original_length` places, `long` beyond."""

    kind: Literal["longrope"] = "longrope"
    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int = Field(gt=0)
    attention_factor: float = Field(default=1.0, ge=0)

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return self.attention_factor

    def frequencies(self, theta: float, dim: int, length: int | None) -> Tensor:
        """K/2 angles per place, fp32, for texts of `length` places. Raises ValueError where K/2 is not its count."""
        factors = self.long if (length or 0) > self.original_length else self.short
        if len(factors) != dim // 2:
            raise ValueError(f"longrope: {len(factors)} factors for {dim // 2} rotations")
        return plain_frequencies(theta, dim) / torch.tensor(factors, dtype=torch.float32, device="cpu")


RotaryScaling = Annotated[
    LinearScaling | NtkScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongRopeScaling,
    Field(discriminator="kind"),
]


class RotarySpec(Config):
    """How fast queries and keys turn: pair i by theta^(-2i/K) radians a place, slowed down by `scaling`."""

    theta: float = Field(default=10_000.0, gt=0, description="base of the wavelengths")
    scaling: RotaryScaling | None = None


def plain_frequencies(theta: float, dim: int) -> Tensor:
    """K/2 angles per place, fp32 and rounded as in the field's training code: released models saw just these.

    Always real memory: models are also built without any (on torch's meta device).
    """
    return 1.0 / theta ** (torch.arange(0, dim, 2, device="cpu").float() / dim)


def document_lengths(positions_BT: Tensor) -> Tensor:
    """B x T: how many places the document of each place has, as far as the row shows it.

    A document is a run of positions that count up by one.
    """
    starts_BT = torch.ones_like(positions_BT, dtype=torch.int64)
    starts_BT[:, 1:] = positions_BT[:, 1:] != positions_BT[:, :-1] + 1
    document_BT = starts_BT.cumsum(1) - 1
    last_BT = torch.zeros_like(document_BT).scatter_reduce(1, document_BT, positions_BT.long(), "amax")
    return last_BT.gather(1, document_BT) + 1


class Rotary(nn.Module):
    """The tables of one RotarySpec for heads of `dim` dimensions. Raises ValueError where the two do not fit."""

    frequency_K: Tensor

    def __init__(self, spec: RotarySpec, dim: int) -> None:
        super().__init__()
        self.spec, self.dim = spec, dim
        self.by_length = isinstance(spec.scaling, DynamicScaling | LongRopeScaling)
        self.magnitude = float(getattr(spec.scaling, "magnitude", 1.0))
        self.register_buffer("frequency_K", self._frequencies(None), persistent=False)

    def forward(self, positions_BT: Tensor, dtype: torch.dtype) -> Tables:
        """Cosines and sines, each (B or 1, T, 1, K/2); angles are taken in fp32, then rounded to `dtype`."""
        frequency = self._by_length(positions_BT) if self.by_length else self.frequency_K
        angle = positions_BT.to(frequency.dtype)[:, :, None, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        if self.magnitude != 1.0:
            cos, sin = cos * self.magnitude, sin * self.magnitude
        return cos.to(dtype), sin.to(dtype)

    def _by_length(self, positions_BT: Tensor) -> Tensor:
        """(B or 1, T, 1, K/2): each document turns by its own length, whatever else is in the batch."""
        different, place_BT = document_lengths(positions_BT).unique(return_inverse=True)
        table_UK = torch.stack(
            [self._frequencies(length) for length in different.tolist()] or [self.frequency_K]
        )
        return table_UK.to(self.frequency_K)[place_BT][:, :, None]

    def _frequencies(self, length: int | None) -> Tensor:
        scaling = self.spec.scaling
        if scaling is None:
            return plain_frequencies(self.spec.theta, self.dim)
        return scaling.frequencies(self.spec.theta, self.dim, length)


def rotate(x_BTHK: Tensor, tables: Tables) -> Tensor:
    """Turns each head's vectors by the angles of their places."""
    cos, sin = tables
    one, two = x_BTHK.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)
