"""Several sources in one training run, in exact proportions.

    source = Mixture(config, [pairs, denoise], seed)       # weights 3 and 1: steps p p d p | p p d p | ...

Every step makes `picks` picks; a pick takes the next whole step of one source. Which source the k-th pick takes,
and how many picks each had before it, is read from a table of one period (weights are rounded to whole numbers
of a period), so a step is found in O(1) and no source's share is ever off by one pick or more: the table is the
chairman assignment of Tijdeman (1980).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from nalanda.base import io
from nalanda.config import Config
from nalanda.data.batch import Batch
from nalanda.data.denoise import DenoiseConfig
from nalanda.data.masking import MaskedConfig
from nalanda.data.next_sentence import NextSentenceConfig
from nalanda.data.packing import CausalConfig
from nalanda.data.pairs import PairsConfig
from nalanda.data.source import Source

PERIOD = 1000
"""Weights are rounded to multiples of 1/PERIOD of all picks."""

PartConfig = Annotated[
    PairsConfig | DenoiseConfig | CausalConfig | MaskedConfig | NextSentenceConfig,
    Field(discriminator="kind"),
]


class MixtureConfig(Config):
    """`weights` are shares of steps (of picks); with `picks` above 1 every step joins steps of several parts."""

    kind: Literal["mixture"] = "mixture"
    parts: tuple[PartConfig, ...] = Field(min_length=1)
    weights: tuple[float, ...]
    picks: int = Field(1, gt=0)

    @model_validator(mode="after")
    def _one_weight_each(self) -> MixtureConfig:
        if len(self.weights) != len(self.parts):
            raise ValueError(
                f"{len(self.parts)} parts but {len(self.weights)} weights; give one for each part"
            )
        if min(self.weights) <= 0:
            raise ValueError("every weight must be greater than 0; leave a part out instead")
        return self


def whole_shares(weights: Sequence[float]) -> np.ndarray:
    """The weights as whole numbers in their lowest terms, to within 1/PERIOD; each at least 1."""
    total = sum(weights)
    exact = [Fraction(weight / total).limit_denominator(PERIOD) for weight in weights]
    if sum(exact) == 1 and min(exact) > 0:
        period = math.lcm(*(share.denominator for share in exact))
        if period <= PERIOD:
            return np.array([int(share * period) for share in exact], dtype=np.int64)
    rounded = [max(1, round(weight / total * PERIOD)) for weight in weights]
    return np.array(rounded, dtype=np.int64) // math.gcd(*rounded)


def chairman(shares: np.ndarray) -> np.ndarray:
    """The source of each pick of one period: after k picks, source i had shares[i]/sum * k picks to within one."""
    count, period = len(shares), int(shares.sum())
    if count == 1:
        return np.zeros(period, dtype=np.int64)
    share = shares / period
    slack = 1 - 1 / (2 * count - 2)
    had, turn = np.zeros(count), np.empty(period, dtype=np.int64)
    for pick in range(1, period + 1):
        owed = share * pick - had
        urgency = np.where(owed >= 1 - slack - 1e-9, (slack - owed) / share, np.inf)
        turn[pick - 1] = int(urgency.argmin())
        had[turn[pick - 1]] += 1
    return turn


class Mixture:
    """A source that takes its steps from `parts` in turn."""

    kind = "mixture"

    def __init__(self, parts: Sequence[Source], weights: Sequence[float], picks: int = 1) -> None:
        self.parts, self.picks = tuple(parts), picks
        self.shares = whole_shares(weights)
        self._turn = chairman(self.shares)
        taken = self._turn[:, None] == np.arange(len(self.parts))
        self._before = np.concatenate([np.zeros((1, len(self.parts)), dtype=np.int64), taken.cumsum(axis=0)])
        self.fingerprint = io.fingerprint(
            {
                "source": self.kind,
                "parts": [part.fingerprint for part in self.parts],
                "shares": self.shares.tolist(),
                "picks": picks,
            }
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every part has been through an epoch of its own; smaller parts come again meanwhile."""
        period = int(self.shares.sum())
        picks = max(
            math.ceil(part.steps_per_epoch * period / share)
            for part, share in zip(self.parts, self.shares.tolist())
        )
        return math.ceil(picks / self.picks)

    def pick(self, number: int) -> tuple[int, int]:
        """(part, step of that part) of the pick `number`, counted from 0."""
        cycle, place = divmod(number, len(self._turn))
        part = int(self._turn[place])
        return part, cycle * int(self.shares[part]) + int(self._before[place, part])

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of optimizer step `step`."""
        batches: list[Batch] = []
        for number in range(step * self.picks, (step + 1) * self.picks):
            part, its_step = self.pick(number)
            batches += self.parts[part].step(its_step)
        return batches

    def epoch(self) -> Iterator[Batch]:
        """One pass over each part, one after the other."""
        for part in self.parts:
            yield from part.epoch()

    def describe(self) -> dict[str, Any]:
        """The parts' own descriptions, and their shares of all picks."""
        return {
            "kind": self.kind,
            "shares": (self.shares / self.shares.sum()).tolist(),
            "picks": self.picks,
            "parts": [part.describe() for part in self.parts],
            "steps_per_epoch": self.steps_per_epoch,
        }
