"""Sequences cut to a longest length: what a source of single texts calls a sample.

A text of at most `limit` tokens is one piece; a longer one is cut into pieces of nearly equal length, so that no
token is lost and no piece is a stump. Empty sequences give no piece and are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nalanda.base.errors import DataError
from nalanda.data.ragged import Ragged, gather
from nalanda.data.store import TokenStore


class Pieces:
    """Piece p is `store.tokens[starts[p] : starts[p] + lengths[p]]`, a part of sequence `sequence[p]`."""

    def __init__(self, store: TokenStore, limit: int) -> None:
        self.store = store
        total = store.lengths
        parts = -(-total // limit)
        self.empty, self.split = int((total == 0).sum()), int((parts > 1).sum())
        self.sequence = np.repeat(np.arange(len(store)), parts)
        nth = np.arange(len(self.sequence)) - np.repeat(np.cumsum(parts) - parts, parts)
        whole, count = total[self.sequence], parts[self.sequence]
        begin, end = nth * whole // np.maximum(count, 1), (nth + 1) * whole // np.maximum(count, 1)
        self.starts = store.offsets[:-1][self.sequence] + begin
        self.lengths = end - begin
        self.whole = count == 1
        if len(self.sequence) == 0:
            raise DataError(
                f"{store.folder}: holds no text ({len(store)} rows, all empty); check the corpus split"
            )

    def __len__(self) -> int:
        return len(self.sequence)

    def gather(self, ids: np.ndarray) -> Ragged:
        """The tokens of the given pieces."""
        return gather(self.store.tokens, self.starts[ids], self.lengths[ids])

    def describe(self) -> dict[str, Any]:
        """Counts for a source's `describe`."""
        return {
            "rows": len(self),
            "tokens": int(self.lengths.sum()),
            "dropped": {"empty": self.empty},
            "split": self.split,
            "corpus": self.store.meta.get("counts", {}),
        }
