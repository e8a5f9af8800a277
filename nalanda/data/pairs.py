"""Sequence-to-sequence pairs: translation, and any other task of text to text.

    encoder   [TAG of the target language] source tokens [EOS]
    decoder   [BOS] target tokens             ->  target tokens [EOS]

That is the layout of our own models; those of others are laid out as they were trained (generate/prompting.py).
Source and target are two stores with the same sequences in the same order; the target store knows each one's
language. Pairs that are empty or too long are left out and counted in `describe()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from nalanda.base import io
from nalanda.base.errors import DataError
from nalanda.data.batch import Batch
from nalanda.data.ragged import Ragged
from nalanda.data.source import Bucketed, Collator, DataConfig
from nalanda.data.store import TokenStore
from nalanda.generate.prompting import Frame, Prompting

if TYPE_CHECKING:
    from nalanda.tokenizer.tokenizer import Tokenizer


class PairsConfig(DataConfig):
    """Translation pairs. `temperature` T samples target languages with p ~ pairs^(1/T)."""

    kind: Literal["pairs"] = "pairs"
    temperature: float = Field(1.0, ge=1.0)
    direction: Literal["forward", "backward", "both"] = "forward"


def languages(store: TokenStore, needed: bool) -> np.ndarray:
    """The number, in `store.codes`, of every sequence's language; -1 where it has none.

    Raises DataError where one is missing though it is `needed`.
    """
    found = store.languages if store.languages is not None else np.full(len(store), -1, dtype=np.int16)
    if needed and len(store) and int(found.min()) < 0:
        raise DataError(
            f"{store.folder}: a row has no language, so there is no tag for it; "
            "give 'language' (and 'target_language') in the corpus"
        )
    return found.astype(np.int64)


@dataclass(frozen=True)
class Frames:
    """What stands around each row: two matrices for the source, two for the target, and the decoder's starts."""

    before: np.ndarray
    behind: np.ndarray
    start: np.ndarray
    opening: np.ndarray
    closing: np.ndarray
    group: np.ndarray
    fingerprint: dict[str, str]

    @classmethod
    def of(cls, source: TokenStore, target: TokenStore, prompting: Prompting) -> Frames:
        """Those of aligned stores. Raises DataError for a language that is missing or unknown to the model."""
        need = prompting.tagged
        heard = languages(source, need == "both") if need == "both" else np.full(len(source), -1)
        said = languages(target, need != "")
        pairs, row = np.unique(np.stack([heard, said], axis=1), axis=0, return_inverse=True)
        row = row.reshape(-1)

        def frame(one: int, other: int) -> Frame:
            return prompting.frame(
                source.codes[one] if one >= 0 else "", target.codes[other] if other >= 0 else ""
            )

        frames = [frame(one, other) for one, other in pairs.tolist()]

        def matrix(name: str) -> np.ndarray:
            rows = [getattr(frame, name) for frame in frames]
            return np.array(rows, dtype=np.int64).reshape(len(frames), -1 if frames else 0)[row]

        own = [prompting.tokenizer.language(code) for code in target.codes] if prompting.own else []
        return cls(
            matrix("before"),
            matrix("behind"),
            matrix("start")[:, 0] if frames else np.empty(0, dtype=np.int64),
            matrix("opening"),
            matrix("closing"),
            np.array(own, dtype=np.int64)[said] if own else said + 1,
            {} if prompting.own else {"layout": io.fingerprint({"frames": repr(frames)})},
        )

    @property
    def source_length(self) -> int:
        """How many tokens stand around a source."""
        return self.before.shape[1] + self.behind.shape[1]

    @property
    def target_length(self) -> int:
        """How many tokens are predicted beside the target's own."""
        return self.opening.shape[1] + self.closing.shape[1]

    def take(self, rows: np.ndarray) -> Frames:
        """Those of the given rows."""
        return Frames(
            self.before[rows],
            self.behind[rows],
            self.start[rows],
            self.opening[rows],
            self.closing[rows],
            self.group[rows],
            self.fingerprint,
        )

    def source(self, rows: Ragged) -> Ragged:
        """What the encoder reads."""
        return rows.around(self.before, self.behind)

    def target(self, rows: Ragged) -> Ragged:
        """What the decoder is to write."""
        return rows.around(self.opening, self.closing)


class Pairs(Bucketed):
    """Batches of aligned pairs; see the file's heading for the layout."""

    kind = "pairs"

    def __init__(
        self,
        config: PairsConfig,
        source: TokenStore,
        target: TokenStore,
        tokenizer: Tokenizer,
        seed: int,
        prompting: Prompting | None = None,
    ) -> None:
        if len(source) != len(target):
            raise DataError(
                f"{source.folder} has {len(source)} sequences, {target.folder} {len(target)}: not aligned; "
                "delete both and run again"
            )
        self.source, self.target, self.tokenizer = source, target, tokenizer
        self.collator = Collator(tokenizer.pad, config.length_multiple, config.row_multiple)
        frames = Frames.of(source, target, prompting or Prompting(tokenizer))
        more, end = frames.source_length, frames.target_length
        source_lengths, target_lengths = source.lengths, target.lengths
        empty = (source_lengths == 0) | (target_lengths == 0)
        too_long = ~empty & (
            (source_lengths + more > config.max_length) | (target_lengths + end > config.max_length)
        )
        self.rows = np.flatnonzero(~empty & ~too_long)
        self.dropped = {"empty": int(empty.sum()), "too_long": int(too_long.sum())}
        if len(self.rows) == 0:
            raise DataError(
                f"{source.folder}: no pair is left of {len(source)} ({self.dropped['empty']} empty, "
                f"{self.dropped['too_long']} longer than max_length {config.max_length})"
            )
        self._frames = frames.take(self.rows)
        inputs = {
            "source": source.fingerprint,
            "target": target.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            **frames.fingerprint,
        }
        self._source_lengths = source_lengths[self.rows] + more
        self._target_lengths = target_lengths[self.rows] + end
        super().__init__(config, seed, self._frames.group, inputs, config.temperature)

    def sizes(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """[TAG] source [EOS] and [BOS] target."""
        return self._source_lengths[ids], self._target_lengths[ids]

    def collate(self, ids: np.ndarray, epoch: int, step: int) -> Batch:
        """The pairs `ids` as one batch."""
        rows, frames = self.rows[ids], self._frames.take(ids)
        source, target = frames.source(self.source.gather(rows)), frames.target(self.target.gather(rows))
        return self.collator.pairs(source, target, frames.start, rows)

    def describe(self) -> dict[str, Any]:
        """Rows used and dropped, tokens and rows by target language."""
        spoken = languages(self.target, False)[self.rows]
        counts = {code: int((spoken == number).sum()) for number, code in enumerate(self.target.codes)}
        return {
            "kind": self.kind,
            "rows": len(self.rows),
            "dropped": self.dropped,
            "source_tokens": int((self._source_lengths - self._frames.source_length).sum()),
            "target_tokens": int((self._target_lengths - self._frames.target_length).sum()),
            "rows_by_language": counts,
            "corpus": self.target.meta.get("counts", {}),
            "steps_per_epoch": self.steps_per_epoch,
        }
