"""Small batches and short rows first: a ladder that training climbs, a pure function of the step.

    warmup: [{steps: 400, batch: 4, length: 2}, {steps: 200, batch: 2}]

For 400 steps a batch is a quarter of `batch_tokens` and rows are cut in two, then 200 steps take half a batch, then
all is as configured. Early gradients point the same way whatever the batch, so small ones get there with less data
(McCandlish et al. 2018); short rows cost less attention while there is nothing far away to learn yet (Press et al.
2021). A step takes its part of the batch that a whole step would take: each sample comes once an epoch, and a resume
finds any step at once. There are as many shapes as rungs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from nalanda.config import Config


class Rung(Config):
    """So many optimizer steps; batch and length are what the full ones are divided by."""

    steps: int = Field(gt=0)
    batch: int = Field(1, gt=0, description="batch_tokens are divided by this")
    length: int = Field(1, gt=0, description="rows are cut in so many (kind causal)")

    @model_validator(mode="after")
    def _whole_batches(self) -> Rung:
        if self.steps % self.batch:
            raise ValueError(
                f"steps ({self.steps}) must be a multiple of batch ({self.batch}), so that no batch is left half used"
            )
        return self


class Place(NamedTuple):
    """What a step takes: part `part` of the `parts` of whole step `whole`, its rows cut in `length`."""

    whole: int
    part: int = 0
    parts: int = 1
    length: int = 1

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Its part of a whole step's rows; of fewer rows than parts, one of them."""
        taken = rows[self.part :: self.parts]
        return taken if len(taken) else rows[self.part % len(rows)][None]


def place(warmup: Sequence[Rung], step: int) -> Place:
    """What optimizer step `step`, counted from 0, takes."""
    whole = 0
    for rung in warmup:
        if step < rung.steps:
            return Place(whole + step // rung.batch, step % rung.batch, rung.batch, rung.length)
        step -= rung.steps
        whole += rung.steps // rung.batch
    return Place(whole + step)


def cut(values: dict[str, np.ndarray], documents: np.ndarray, pieces: int) -> dict[str, np.ndarray]:
    """The arrays of packed rows (rows x width) with every row cut in `pieces`, its segments counted from 1 and its
    positions from 0 again. `documents` has each place's document, -1 for padding: a row's sample is its first."""
    rows, width = values["ids"].shape
    shape = rows * pieces, width // pieces
    found = {key: value.reshape(shape) for key, value in values.items() if value.ndim == 2}
    segments, positions = found["segments"], found["positions"]
    first = segments[:, :1]
    found["positions"] = np.where(segments == first, positions - positions[:, :1], positions)
    found["segments"] = np.where(segments > 0, segments - first + 1, 0).astype(segments.dtype)
    return {**found, "sample_ids": documents.reshape(shape)[:, 0].copy()}
