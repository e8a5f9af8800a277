"""Sequence-to-sequence pairs: translation, and any other task of text to text.

    encoder   [TAG of the target language] source tokens [EOS]
    decoder   [BOS] target tokens             ->  target tokens [EOS]

Source and target are two stores with the same sequences in the same order; the target store knows each one's
language. Pairs that are empty or too long are left out and counted in `describe()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from nalanda.base.errors import DataError
from nalanda.data.batch import Batch
from nalanda.data.source import Bucketed, Collator, DataConfig
from nalanda.data.store import TokenStore

if TYPE_CHECKING:
    from nalanda.tokenizer.tokenizer import Tokenizer


class PairsConfig(DataConfig):
    """Translation pairs. `temperature` T samples target languages with p ~ pairs^(1/T)."""

    kind: Literal["pairs"] = "pairs"
    temperature: float = Field(1.0, ge=1.0)
    direction: Literal["forward", "backward", "both"] = "forward"


def tags(store: TokenStore, tokenizer: Tokenizer) -> np.ndarray:
    """The language tag of every sequence of a store. Raises DataError where a language is missing or unknown."""
    if len(store) == 0:
        return np.empty(0, dtype=np.int64)
    if store.languages is None or int(store.languages.min()) < 0:
        raise DataError(
            f"{store.folder}: a row has no language, so there is no tag for it; "
            "give 'language' (and 'target_language') in the corpus"
        )
    known = np.array([tokenizer.language(code) for code in store.codes], dtype=np.int64)
    return known[store.languages]


class Pairs(Bucketed):
    """Batches of aligned pairs; see the file's heading for the layout."""

    kind = "pairs"

    def __init__(
        self, config: PairsConfig, source: TokenStore, target: TokenStore, tokenizer: Tokenizer, seed: int
    ) -> None:
        if len(source) != len(target):
            raise DataError(
                f"{source.folder} has {len(source)} sequences, {target.folder} {len(target)}: not aligned; "
                "delete both and run again"
            )
        self.source, self.target, self.tokenizer = source, target, tokenizer
        self.collator = Collator(tokenizer.pad, config.length_multiple, config.row_multiple)
        source_lengths, target_lengths = source.lengths, target.lengths
        empty = (source_lengths == 0) | (target_lengths == 0)
        too_long = ~empty & (
            (source_lengths + 2 > config.max_length) | (target_lengths + 1 > config.max_length)
        )
        self.rows = np.flatnonzero(~empty & ~too_long)
        self.dropped = {"empty": int(empty.sum()), "too_long": int(too_long.sum())}
        if len(self.rows) == 0:
            raise DataError(
                f"{source.folder}: no pair is left of {len(source)} ({self.dropped['empty']} empty, "
                f"{self.dropped['too_long']} longer than max_length {config.max_length})"
            )
        self._tags = tags(target, tokenizer)[self.rows]
        inputs = {
            "source": source.fingerprint,
            "target": target.fingerprint,
            "tokenizer": tokenizer.fingerprint,
        }
        self._source_lengths = source_lengths[self.rows] + 2
        self._target_lengths = target_lengths[self.rows] + 1
        super().__init__(config, seed, self._tags, inputs, config.temperature)

    def sizes(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """[TAG] source [EOS] and [BOS] target."""
        return self._source_lengths[ids], self._target_lengths[ids]

    def collate(self, ids: np.ndarray, epoch: int, step: int) -> Batch:
        """The pairs `ids` as one batch."""
        tokenizer, rows = self.tokenizer, self.rows[ids]
        source = self.source.gather(rows).affix(prefix=self._tags[ids], suffix=tokenizer.eos)
        target = self.target.gather(rows)
        return self.collator.pairs(source, target, tokenizer.bos, tokenizer.eos, rows)

    def describe(self) -> dict[str, Any]:
        """Rows used and dropped, tokens and rows by target language."""
        known = {code: self.tokenizer.language(code) for code in self.target.codes}
        languages = {code: int((self._tags == tag).sum()) for code, tag in known.items()}
        return {
            "kind": self.kind,
            "rows": len(self.rows),
            "dropped": self.dropped,
            "source_tokens": int((self._source_lengths - 2).sum()),
            "target_tokens": int((self._target_lengths - 1).sum()),
            "rows_by_language": languages,
            "corpus": self.target.meta.get("counts", {}),
            "steps_per_epoch": self.steps_per_epoch,
        }
