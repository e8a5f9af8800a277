"""What gives the loop its batches, and what all sources share.

    source.step(17)          # the micro-batches of optimizer step 17: a pure function, safe in any thread
    source.epoch()           # one ordered pass for evaluation
    source.steps_per_epoch, source.fingerprint, source.describe()

`Bucketed` is the base of the sources whose rows differ in length: it owns order and splitting, a subclass says
how long its samples are and how a batch of them is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field, model_validator

from nalanda.base import io
from nalanda.base.errors import DataError
from nalanda.config import Config, unset
from nalanda.data.batch import Batch
from nalanda.data.noise import EVALUATION
from nalanda.data.order import Order, ladder
from nalanda.data.ragged import Ragged
from nalanda.data.warmup import Rung, place


@runtime_checkable
class Source(Protocol):
    """Batches by step. `step(s)` is a pure function of (config, seed, s): no worker or resume changes it."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the order and the content of the batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps until every sample was seen once."""

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of optimizer step `step`, counted from 0."""

    def epoch(self) -> Iterator[Batch]:
        """One finite, ordered pass; its noise is keyed by the seed alone, so every pass is the same."""

    def describe(self) -> dict[str, Any]:
        """Counts of rows, tokens, dropped rows ..., and `kind`."""


class DataConfig(Config):
    """What every kind of data has. Token budgets count padded places of all streams of a batch."""

    corpus: Path
    tokenizer: Path | None = Field(
        None, description="a folder, a GGUF file or a name of the hub; left out: the model's own"
    )
    batch_tokens: int = Field(8192, gt=0, description="padded tokens of one optimizer step")
    micro_batch_tokens: int | None = Field(
        None, gt=0, description="of one forward pass; default batch_tokens"
    )
    max_length: int = Field(512, ge=4, description="longest row, special tokens included")
    length_multiple: int = Field(4, gt=0, description="row lengths are padded to a multiple of this")
    row_multiple: int = Field(1, gt=0, description="row numbers are padded to a multiple of this")
    warmup: tuple[Rung, ...] = Field(
        (), exclude_if=unset, description="smaller batches and shorter rows at first: see data/warmup.py"
    )

    @property
    def micro(self) -> int:
        """Padded tokens of one micro-batch."""
        return self.micro_batch_tokens or self.batch_tokens

    @model_validator(mode="after")
    def _micro_fits(self) -> DataConfig:
        if self.micro > self.batch_tokens:
            raise ValueError(
                f"micro_batch_tokens {self.micro} is more than batch_tokens {self.batch_tokens}; lower it"
            )
        if any(rung.length > 1 for rung in self.warmup) and getattr(self, "kind", "") != "causal":
            raise ValueError("warmup: only rows of kind 'causal' can be cut; leave length out")
        return self

    def content(self) -> dict[str, Any]:
        """The fields that decide which batches come; places and the split into micro-batches do not."""
        return self.model_dump(mode="json", exclude={"corpus", "tokenizer", "micro_batch_tokens"})


class TextConfig(DataConfig):
    """Data of single texts: which sides of a corpus they come from. Equal texts are taken once."""

    sides: Literal["both", "text", "target"] = "both"
    languages: tuple[str, ...] = Field(default=(), description="only these codes; empty for all")


class Bucketed:
    """A source of rows of different lengths, in batches by token budget.

    A subclass sets what `sizes` and `collate` need and then calls `super().__init__`.
    """

    kind = ""

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        groups: np.ndarray,
        inputs: dict[str, str],
        temperature: float = 1.0,
    ) -> None:
        self.config, self.seed = config, seed
        self.fingerprint = io.fingerprint(
            {"source": self.kind, "config": config.content(), "seed": seed, **inputs}
        )
        multiple, rows = config.length_multiple, config.row_multiple
        self.order = Order(groups, self.sizes, config.batch_tokens, seed, temperature, multiple, rows)
        source, stream = self.sizes(np.arange(len(groups)), 0)
        longest = int((ladder(source, multiple) + ladder(stream, multiple)).max()) * rows
        if longest > config.micro:
            raise DataError(
                f"data: the longest row costs {longest} padded tokens, more than a micro-batch of {config.micro}; "
                "raise micro_batch_tokens and batch_tokens, or lower max_length"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, of whole batches."""
        return self.order.steps_per_epoch

    def sizes(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Planned (source, stream) lengths of samples in an epoch, special tokens included."""
        raise NotImplementedError

    def collate(self, ids: np.ndarray, epoch: int, step: int) -> Batch:
        """The batch of the given samples; all randomness is keyed by (seed, step or epoch, sample)."""
        raise NotImplementedError

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of optimizer step `step`."""
        taken = place(self.config.warmup, step)
        epoch, ids = self.order.step(taken.whole)
        ids = taken.of(ids)
        return [self.collate(part, epoch, step) for part in self.order.split(ids, epoch, self.config.micro)]

    def epoch(self) -> Iterator[Batch]:
        """Every sample once, in order of length, with the noise of evaluation."""
        for part in self.order.ordered(self.config.micro):
            yield self.collate(part, 0, EVALUATION)


class Collator:
    """Pads rows into the tensors of a batch, up the shape ladder."""

    def __init__(self, pad: int, length_multiple: int = 1, row_multiple: int = 1) -> None:
        self.pad, self.length_multiple, self.row_multiple = pad, length_multiple, row_multiple

    def stream(self, rows: Ragged, prefix: str = "") -> dict[str, np.ndarray]:
        """`ids`, `segments` and `positions` of rows that are one document each (keys after `prefix`)."""
        width = int(ladder(max(1, int(rows.lengths.max())), self.length_multiple))
        height = int(ladder(len(rows), self.row_multiple))
        ids = rows.pad(width, self.pad, height)
        lengths = np.zeros(height, dtype=np.int64)
        lengths[: len(rows)] = rows.lengths
        places = np.arange(width, dtype=np.int32)
        real = places < lengths[:, None]
        positions = places * real
        return {
            f"{prefix}ids": ids,
            f"{prefix}segments": real.astype(np.int32),
            f"{prefix}positions": positions.astype(np.int32),
        }

    def like(self, rows: Ragged, stream: dict[str, np.ndarray], fill: int = 0) -> np.ndarray:
        """Rows of the same lengths as a stream's, padded to its shape."""
        height, width = stream["ids"].shape
        return rows.pad(width, fill, height)

    def per_row(self, values: np.ndarray, stream: dict[str, np.ndarray], fill: int) -> np.ndarray:
        """One value for each row, `fill` in rows that only pad."""
        out = np.full(len(stream["ids"]), fill, dtype=values.dtype)
        out[: len(values)] = values
        return out

    def pairs(self, source: Ragged, target: Ragged, start: np.ndarray, sample_ids: np.ndarray) -> Batch:
        """Encoder-decoder rows: `source` is fed whole; from its `start` on, each row predicts all of its `target`."""
        values = self.stream(target.shifted(start))
        values["targets"] = self.like(target, values, self.pad)
        values["target_weight"] = values["segments"].astype(np.float32)
        values.update(self.stream(source, "source_"))
        values["sample_ids"] = self.per_row(sample_ids.astype(np.int64), values, -1)
        return to_batch(values)


def to_batch(values: dict[str, np.ndarray]) -> Batch:
    """The arrays as tensors (no copy)."""
    return Batch(**{key: torch.from_numpy(value) for key, value in values.items()})  # type: ignore[typeddict-item]
