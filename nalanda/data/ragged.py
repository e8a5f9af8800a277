"""Rows of different lengths in one flat array: whole batches are cut, joined and padded without a Python loop.

    rows = gather(tokens, starts, lengths)          # Ragged(flat, lengths)
    rows = rows.affix(prefix=tags, suffix=eos)      # one more token at the front and at the end of every row
    ids = rows.pad(width=32, fill=pad)              # rows x 32

A batch of a few hundred short rows costs some ten numpy calls instead of a few hundred.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Ragged:
    """`flat` holds the rows' values one after the other (int64), `lengths` how many belong to each row."""

    flat: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """Where each row begins in `flat`."""
        return np.cumsum(self.lengths) - self.lengths

    def rows(self) -> np.ndarray:
        """For each value of `flat` the number of its row."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def places(self) -> np.ndarray:
        """For each value of `flat` its place inside its row, from 0."""
        return np.arange(int(self.lengths.sum())) - np.repeat(self.starts, self.lengths)

    def take(self, rows: np.ndarray) -> Ragged:
        """The given rows, in the given order."""
        return gather(self.flat, self.starts[rows], self.lengths[rows])

    def head(self, limit: int) -> Ragged:
        """Every row cut after its first `limit` values."""
        if len(self) == 0 or int(self.lengths.max()) <= limit:
            return self
        return gather(self.flat, self.starts, np.minimum(self.lengths, limit))

    def keep(self, kept: np.ndarray) -> Ragged:
        """Only the values where the boolean `kept` (one for each value) is true."""
        counts = np.bincount(self.rows()[kept], minlength=len(self.lengths))
        return Ragged(self.flat[kept], counts.astype(np.int64))

    def affix(self, prefix: np.ndarray | int | None = None, suffix: np.ndarray | int | None = None) -> Ragged:
        """Every row with one value before it and one behind it (an int, or one for each row)."""
        front, back = int(prefix is not None), int(suffix is not None)
        lengths = self.lengths + front + back
        ends = np.cumsum(lengths)
        flat = np.empty(int(lengths.sum()), dtype=np.int64)
        flat[np.arange(len(self.flat)) + self.rows() * (front + back) + front] = self.flat
        if prefix is not None:
            flat[ends - lengths] = prefix
        if suffix is not None:
            flat[ends - 1] = suffix
        return Ragged(flat, lengths)

    def around(self, before: np.ndarray, behind: np.ndarray) -> Ragged:
        """Every row between its values of `before` (rows x any) and of `behind` (rows x any)."""
        front, back = before.shape[1], behind.shape[1]
        lengths = self.lengths + front + back
        ends = np.cumsum(lengths)
        flat = np.empty(int(lengths.sum()), dtype=np.int64)
        flat[np.arange(len(self.flat)) + self.rows() * (front + back) + front] = self.flat
        flat[(ends - lengths)[:, None] + np.arange(front)] = before
        flat[(ends - back)[:, None] + np.arange(back)] = behind
        return Ragged(flat, lengths)

    def shifted(self, first: np.ndarray) -> Ragged:
        """Every row with its value of `first` before it and its own last one left out; no row is empty."""
        flat = np.empty_like(self.flat)
        flat[1:] = self.flat[:-1]
        flat[self.starts] = first
        return Ragged(flat, self.lengths)

    def pad(self, width: int, fill: int, rows: int | None = None) -> np.ndarray:
        """The rows as a `rows x width` int64 matrix, `fill` behind each; more rows than there are stay empty."""
        lengths = self.lengths
        if rows is not None and rows > len(lengths):
            lengths = np.concatenate([lengths, np.zeros(rows - len(lengths), dtype=np.int64)])
        out = np.full((len(lengths), width), fill, dtype=np.int64)
        out[np.arange(width) < lengths[:, None]] = self.flat
        return out


def gather(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Ragged:
    """The slices `tokens[starts[i] : starts[i] + lengths[i]]` as rows."""
    lengths = lengths.astype(np.int64)
    shift = starts - (np.cumsum(lengths) - lengths)
    return Ragged(tokens[np.arange(int(lengths.sum())) + np.repeat(shift, lengths)].astype(np.int64), lengths)


def ragged(sequences: list[list[int]]) -> Ragged:
    """Rows from lists of tokens."""
    flat = np.array([token for sequence in sequences for token in sequence], dtype=np.int64)
    return Ragged(flat, np.array([len(sequence) for sequence in sequences], dtype=np.int64))


def concatenate(parts: list[Ragged]) -> Ragged:
    """The rows of all parts, one part after the other."""
    return Ragged(np.concatenate([p.flat for p in parts]), np.concatenate([p.lengths for p in parts]))


def ranks(keys: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """For each value the rank (from 0) of its key among the keys of its row; `rows` ascend."""
    order = np.lexsort((keys, rows))
    out = np.empty(len(keys), dtype=np.int64)
    out[order] = np.arange(len(keys)) - starts[rows[order]]
    return out


def join(left: Ragged, right: Ragged) -> Ragged:
    """Row i is row i of `left` followed by row i of `right`."""
    turn = np.arange(2 * len(left)).reshape(2, -1).T.reshape(-1)
    return Ragged(concatenate([left, right]).take(turn).flat, left.lengths + right.lengths)
