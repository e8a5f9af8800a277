"""Batches of random tokens in the shapes of real ones: to measure how fast and large a step is before data exist.

    source = synthetic(config, vocabulary=8000, lengths=lengths_N2, seed=0)
    source.step(0)                      # cut, padded and split as the real source would

`lengths` are (source, stream) lengths of samples, special tokens included; of causal data, (0, a document's places).
Order and packing are the real ones', so what a batch holds beside numbers is right: rows, widths, padding, documents
in a row, trained places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nalanda.base.errors import DataError
from nalanda.base.seeds import derive
from nalanda.data.batch import Batch
from nalanda.data.build import AnyDataConfig
from nalanda.data.masking import MaskedConfig
from nalanda.data.mixture import Mixture, MixtureConfig
from nalanda.data.next_sentence import NextSentenceConfig
from nalanda.data.packing import CausalConfig, best_fit, concatenated
from nalanda.data.ragged import Ragged
from nalanda.data.source import Bucketed, Collator, DataConfig, Source, to_batch

Lengths = dict[str, np.ndarray]
"""Part of the data (`data`, `data.parts.0`) -> N x 2 lengths."""


def synthetic(
    config: AnyDataConfig, vocabulary: int, lengths: Lengths, seed: int = 0, key: str = "data"
) -> Source:
    """A source as `config` describes it; every part needs its `lengths`.

    Raises DataError for rows that do not fit.
    """
    if isinstance(config, MixtureConfig):
        parts = [
            synthetic(part, vocabulary, lengths, derive(seed, "part", i), f"{key}.parts.{i}")
            for i, part in enumerate(config.parts)
        ]
        return Mixture(parts, config.weights, config.picks)
    own = _repeated(lengths[key], config)
    if isinstance(config, CausalConfig):
        return SyntheticPacked(config, vocabulary, own[:, 1], seed)
    return SyntheticRows(config, vocabulary, own, seed)


def _repeated(lengths_N2: np.ndarray, config: DataConfig) -> np.ndarray:
    """The sample as often as it takes for some steps."""
    once = int(lengths_N2.sum())
    if once == 0:
        raise DataError("the sample of the data holds no tokens; check the corpus")
    return np.tile(lengths_N2, (-(-16 * config.batch_tokens // once), 1))


class SyntheticRows(Bucketed):
    """Rows of different lengths: masked, next-sentence, pairs, denoising."""

    kind = "synthetic"

    def __init__(self, config: DataConfig, vocabulary: int, lengths_N2: np.ndarray, seed: int) -> None:
        self.vocabulary, self.lengths = vocabulary, lengths_N2
        self.collator = Collator(0, config.length_multiple, config.row_multiple)
        groups = np.zeros(len(lengths_N2), dtype=np.int64)
        super().__init__(config, seed, groups, {"vocabulary": str(vocabulary)})

    def sizes(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The lengths given."""
        return self.lengths[ids, 0], self.lengths[ids, 1]

    def collate(self, ids: np.ndarray, epoch: int, step: int) -> Batch:
        """Random tokens."""
        random = np.random.default_rng(derive(self.seed, step, int(ids[0])))
        source, stream = self.sizes(ids, epoch)

        def rows(lengths: np.ndarray) -> Ragged:
            return Ragged(random.integers(self.vocabulary, size=int(lengths.sum())), lengths)

        if int(source.max()):
            start = np.zeros(len(ids), dtype=np.int64)
            return self.collator.pairs(rows(source), rows(stream), start, ids)
        tokens = rows(stream)
        values: dict[str, Any] = self.collator.stream(tokens)
        rate = self.config.rate if isinstance(self.config, MaskedConfig | NextSentenceConfig) else 1.0
        real = values["segments"] > 0
        weight = real & (random.random(real.shape) < rate)
        weight[0, 0] = True
        values["targets"] = self.collator.like(tokens, values)
        values["target_weight"] = weight.astype(np.float32)
        values["sample_ids"] = self.collator.per_row(ids.astype(np.int64), values, -1)
        if isinstance(self.config, NextSentenceConfig):
            values["token_types"] = (values["positions"] > values["positions"].max() // 2).astype(np.int32)
            values["labels"] = random.integers(2, size=len(values["ids"]))
        return to_batch(values)

    def describe(self) -> dict[str, Any]:
        """Rows and steps."""
        return {"kind": self.kind, "rows": len(self.lengths), "steps_per_epoch": self.steps_per_epoch}


class SyntheticPacked:
    """Packed rows of documents."""

    kind = "synthetic"

    def __init__(self, config: CausalConfig, vocabulary: int, places: np.ndarray, seed: int) -> None:
        self.config, self.vocabulary, self.seed = config, vocabulary, seed
        self.fingerprint = f"synthetic-{seed}"
        order = np.random.default_rng(seed).permutation(len(places))
        pack = concatenated if config.packing == "concatenate" else best_fit
        _, _, self._lengths, self._bounds = pack(places[order], config.max_length)
        self.rows_per_step = config.batch_tokens // config.max_length

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every row was seen."""
        return -(-(len(self._bounds) - 1) // self.rows_per_step)

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of a step; every step is full."""
        each = self.config.micro // self.config.max_length
        rows = (step * self.rows_per_step + np.arange(self.rows_per_step)) % (len(self._bounds) - 1)
        return [self._batch(rows[at : at + each], step) for at in range(0, len(rows), each)]

    def epoch(self) -> Iterator[Batch]:
        """Every row once."""
        for step in range(self.steps_per_epoch):
            yield from self.step(step)

    def _batch(self, rows: np.ndarray, step: int) -> Batch:
        context = self.config.max_length
        random = np.random.default_rng(derive(self.seed, step, int(rows[0])))
        segments = np.zeros((len(rows), context), dtype=np.int32)
        positions = np.zeros((len(rows), context), dtype=np.int32)
        for row, number in enumerate(rows.tolist()):
            at = 0
            for nth, part in enumerate(range(self._bounds[number], self._bounds[number + 1])):
                length = int(self._lengths[part])
                segments[row, at : at + length] = nth + 1
                positions[row, at : at + length] = np.arange(length)
                at += length
        ids = random.integers(self.vocabulary, size=(len(rows), context + 1))
        return to_batch(
            {
                "ids": ids[:, :-1].copy(),
                "segments": segments,
                "positions": positions,
                "targets": ids[:, 1:].copy(),
                "target_weight": (segments > 0).astype(np.float32),
                "sample_ids": rows.astype(np.int64),
            }
        )

    def describe(self) -> dict[str, Any]:
        """Rows and steps."""
        return {"kind": self.kind, "rows": len(self._bounds) - 1, "steps_per_epoch": self.steps_per_epoch}
