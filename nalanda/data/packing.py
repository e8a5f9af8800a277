"""Causal language modelling: documents packed into rows of one fixed length.

A document of n tokens is n + 1 places: it reads [BOS] t1 .. tn and predicts t1 .. tn [EOS]. A model of others reads
what its tokenizer puts before a text; where that is nothing (GPT-2, Qwen), the EOS of the document before.

    row   | BOS a b c | BOS d e | BOS f g h i |         segments 1 1 1 1 2 2 2 3 3 3 3 3
          |  a b c EOS|  d e EOS|  f g h i j  | ...     positions 0 1 2 3 0 1 2 0 1 2 3 4

The documents of an epoch stand one after the other in a drawn order, the line is cut into rows of `max_length`,
and the rows are drawn in another order. A document that crosses a cut goes on in another row as a segment of its
own: nothing is lost and nothing repeated, and no row but the last has padding. With `packing: best_fit` documents
that fit a row are never cut, at the price of some padding (Ding et al., 2024, "Fewer Truncations Improve Language
Modeling").
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from nalanda.base import io
from nalanda.base.errors import DataError
from nalanda.data.batch import Batch
from nalanda.data.noise import permutation
from nalanda.data.order import ladder
from nalanda.data.source import TextConfig, to_batch
from nalanda.data.store import TokenStore
from nalanda.data.warmup import cut, place
from nalanda.generate.prompting import Prompting

if TYPE_CHECKING:
    from nalanda.tokenizer.tokenizer import Tokenizer


class CausalConfig(TextConfig):
    """Next-token prediction over packed rows of `max_length` places."""

    kind: Literal["causal"] = "causal"
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    max_length: int = Field(512, ge=4)

    @model_validator(mode="after")
    def _row_fits(self) -> CausalConfig:
        if self.max_length > self.micro:
            raise ValueError(
                f"a row of max_length {self.max_length} does not fit a micro-batch of {self.micro} tokens; "
                "raise micro_batch_tokens or lower max_length"
            )
        for rung in self.warmup:
            rows = self.batch_tokens // self.max_length
            if rows % rung.batch or self.max_length % rung.length:
                raise ValueError(
                    f"warmup: {rows} rows of {self.max_length} tokens do not divide by batch {rung.batch} "
                    f"and length {rung.length}"
                )
        return self


@dataclass(frozen=True)
class Packing:
    """An epoch's rows: row r holds parts bounds[r] .. bounds[r + 1]; part p is `lengths[p]` places of document
    `documents[p]` from its place `begins[p]` on. `turn` is the order in which rows are drawn."""

    documents: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray
    bounds: np.ndarray
    turn: np.ndarray


def concatenated(places: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Parts and rows when documents of `places` are laid end to end and cut every `context` places.

    Returns (document, begin, length) of each part and the rows' bounds in parts.
    """
    ends = np.cumsum(places)
    cuts = np.arange(0, int(ends[-1]), context)
    edges = np.unique(np.concatenate([cuts, ends - places]))  # each part begins at a cut or at a document
    document = np.searchsorted(ends, edges, side="right")
    begins = edges - (ends - places)[document]
    lengths = np.diff(np.append(edges, ends[-1]))
    return document, begins, lengths, np.append(np.searchsorted(edges, cuts), len(edges))


def best_fit(places: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Parts and rows when each part, longest first, goes into the fullest row that still takes it.

    A document longer than `context` is first cut into parts of `context` places and a rest. Same result as
    `concatenated`. O(parts), with one bit of an integer for each free length that some row has.
    """
    parts = -(-places // context)
    document = np.repeat(np.arange(len(places)), parts)
    begins = (np.arange(len(document)) - np.repeat(np.cumsum(parts) - parts, parts)) * context
    lengths = np.minimum(places[document] - begins, context)
    free: dict[int, list[int]] = {}
    occupied, rows = 0, 0
    row_of = np.empty(len(lengths), dtype=np.int64)
    for part in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[part])
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = free[room].pop()
            if not free[room]:
                occupied &= ~(1 << room)
        else:
            room, row = context, rows
            rows += 1
        row_of[part] = row
        free.setdefault(room - length, []).append(row)
        if room > length:
            occupied |= 1 << (room - length)
    order = np.argsort(row_of, kind="stable")
    bounds = np.searchsorted(row_of[order], np.arange(rows + 1))
    return document[order], begins[order], lengths[order], bounds


class Packed:
    """Batches of packed rows; every place of every document is trained exactly once an epoch."""

    kind = "causal"

    def __init__(
        self,
        config: CausalConfig,
        store: TokenStore,
        tokenizer: Tokenizer,
        seed: int,
        prompting: Prompting | None = None,
    ) -> None:
        self.config, self.store, self.tokenizer, self.seed = config, store, tokenizer, seed
        prompting = prompting or Prompting(tokenizer)
        before, self._end = prompting.document
        self._before = np.array(before, dtype=np.int64)
        self._rows = np.flatnonzero(store.lengths > 0)
        self._empty = len(store) - len(self._rows)
        if len(self._rows) == 0:
            raise DataError(
                f"{store.folder}: holds no text ({len(store)} rows, all empty); check the corpus split"
            )
        self._places = store.lengths[self._rows] + len(before)
        self.rows_per_step = config.batch_tokens // config.max_length
        self.fingerprint = io.fingerprint(
            {
                "source": self.kind,
                "config": config.content(),
                "seed": seed,
                "store": store.fingerprint,
                "tokenizer": tokenizer.fingerprint,
                **({} if prompting.own else {"layout": str((before, self._end))}),
            }
        )
        self._lock = threading.Lock()
        self._packings: dict[int, Packing] = {}
        self.rows = len(self.packing(0).turn)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, of whole batches; the last has fewer rows where they do not divide."""
        return -(-self.rows // self.rows_per_step)

    def packing(self, epoch: int) -> Packing:
        """The epoch's rows; the two last used epochs are kept in memory."""
        with self._lock:
            packing = self._packings.get(epoch)
            if packing is None:
                packing = self._pack(epoch)
                while len(self._packings) > 1:
                    del self._packings[next(iter(self._packings))]
                self._packings[epoch] = packing
            return packing

    def _pack(self, epoch: int) -> Packing:
        order = permutation(len(self._rows), self.seed, "documents", epoch)
        pack = concatenated if self.config.packing == "concatenate" else best_fit
        document, begins, lengths, bounds = pack(self._places[order], self.config.max_length)
        turn = permutation(len(bounds) - 1, self.seed, "rows", epoch)
        return Packing(self._rows[order][document], begins, lengths, bounds, turn)

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of optimizer step `step`."""
        taken = place(self.config.warmup, step)
        epoch, at = divmod(taken.whole, self.steps_per_epoch)
        packing = self.packing(epoch)
        rows = taken.of(packing.turn[at * self.rows_per_step : (at + 1) * self.rows_per_step])
        return self._batches(packing, rows, taken.length)

    def epoch(self) -> Iterator[Batch]:
        """Every place once, in the packing of epoch 0, row after row."""
        packing = self.packing(0)
        for at in range(0, self.rows, self.rows_per_step):
            yield from self._batches(packing, np.arange(at, min(at + self.rows_per_step, self.rows)))

    def _batches(self, packing: Packing, rows: np.ndarray, pieces: int = 1) -> list[Batch]:
        each = self.config.micro // self.config.max_length
        return [self.collate(packing, rows[at : at + each], pieces) for at in range(0, len(rows), each)]

    def collate(self, packing: Packing, rows: np.ndarray, pieces: int = 1) -> Batch:
        """The given rows of a packing, each cut in `pieces`, as one batch."""
        context, tokenizer = self.config.max_length, self.tokenizer
        counts = packing.bounds[rows + 1] - packing.bounds[rows]
        nth = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        part = np.repeat(packing.bounds[rows], counts) + nth
        lengths = packing.lengths[part]
        inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        # After the p places of `before`, place q of a document reads its token q - p; each predicts what the next
        # reads, the last one EOS.
        at_place = np.repeat(packing.begins[part], lengths) + inside
        document = np.repeat(packing.documents[part], lengths)
        start, end = self.store.offsets[document], self.store.offsets[document + 1]
        tokens, last = self.store.tokens, len(self.store.tokens) - 1
        at = start + at_place - len(self._before)

        def sequence(place: np.ndarray, at: np.ndarray) -> np.ndarray:
            front = self._before[np.minimum(place, len(self._before) - 1)]
            return np.where(place < len(self._before), front, tokens[np.clip(at, 0, last)].astype(np.int64))

        read, predicted = sequence(at_place, at), sequence(at_place + 1, at + 1)
        predicted[at + 1 == end] = self._end
        used = np.bincount(np.repeat(np.arange(len(rows)), counts), weights=lengths, minlength=len(rows))
        height = ladder(len(rows), self.config.row_multiple)
        real = np.zeros((height, context), dtype=bool)
        real[: len(rows)] = np.arange(context) < used[:, None]

        def fill(values: np.ndarray, padding: int, dtype: type) -> np.ndarray:
            out: np.ndarray = np.full((height, context), padding, dtype=dtype)
            out[real] = values
            return out

        ids = np.full(height, -1, dtype=np.int64)
        ids[: len(rows)] = packing.documents[packing.bounds[rows]]
        values = {
            "ids": fill(read, tokenizer.pad, np.int64),
            "segments": fill(np.repeat(nth + 1, lengths), 0, np.int32),
            "positions": fill(inside, 0, np.int32),
            "targets": fill(predicted, tokenizer.pad, np.int64),
            "target_weight": real.astype(np.float32),
            "sample_ids": ids,
        }
        return to_batch(values if pieces == 1 else cut(values, fill(document, -1, np.int64), pieces))

    def describe(self) -> dict[str, Any]:
        """Documents, rows, trained places and the share of places that are padding."""
        places = int(self._places.sum())
        return {
            "kind": self.kind,
            "documents": len(self._rows),
            "dropped": {"empty": self._empty},
            "corpus": self.store.meta.get("counts", {}),
            "tokens": places - len(self._rows) * len(self._before),
            "rows": self.rows,
            "padding": 1 - places / (self.rows * self.config.max_length),
            "split": int((self._places > self.config.max_length).sum()),
            "steps_per_epoch": self.steps_per_epoch,
        }
