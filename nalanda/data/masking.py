"""Masked language modelling: some tokens are hidden, and the model says what they were.

    ids      [BOS] a <mask> c d x f [EOS]        of the chosen tokens 80 % become the mask token, 10 % a random
    targets  [BOS] a   b    c d e f [EOS]        one, 10 % stay (BERT: Devlin et al., 2019); only the chosen are
    weight     0   0   1    0 1 1 0   0          trained. Special tokens are never chosen.

`whole_words` chooses words instead of tokens, so that a word's end does not give its beginning away (a text of
one word excepted: there tokens are chosen).
Models of others have [CLS] and [SEP], or what their tokenizer puts around a text, in place of BOS and EOS.
Which tokens are chosen is a pure function of (seed, step, sample).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from nalanda.data.batch import Batch
from nalanda.data.noise import row_keys, uniform
from nalanda.data.pieces import Pieces
from nalanda.data.ragged import Ragged, ranks
from nalanda.data.source import Bucketed, Collator, TextConfig, to_batch
from nalanda.data.store import TokenStore
from nalanda.generate.prompting import Prompting

if TYPE_CHECKING:
    from nalanda.tokenizer.tokenizer import Tokenizer


class MaskingConfig(TextConfig):
    """Which share of tokens (or words) is chosen, and what becomes of the chosen."""

    rate: float = Field(0.15, gt=0, lt=1)
    mask_share: float = Field(0.8, ge=0, le=1)
    random_share: float = Field(0.1, ge=0, le=1)
    whole_words: bool = False

    @model_validator(mode="after")
    def _shares_fit(self) -> MaskingConfig:
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"mask_share {self.mask_share} + random_share {self.random_share} is more than 1; lower one"
            )
        return self


class MaskedConfig(MaskingConfig):
    """Masked language modelling; T in `temperature` samples languages with p ~ texts^(1/T)."""

    kind: Literal["masked"] = "masked"
    temperature: float = Field(1.0, ge=1.0)


class Masker:
    """Chooses and hides tokens, for whole batches at once."""

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer) -> None:
        self.config, self.mask = config, tokenizer.mask
        self.special = np.zeros(tokenizer.vocabulary, dtype=bool)
        self.special[[i for i in sorted(tokenizer.special_ids) if i < tokenizer.vocabulary]] = True
        ordinary = np.flatnonzero(~self.special)
        self.ordinary = ordinary[[tokenizer.has(i) for i in ordinary.tolist()]]
        self.word_starts = np.asarray(tokenizer.word_starts, dtype=bool) if config.whole_words else None

    def choose(self, rows: Ragged, keys: np.ndarray) -> np.ndarray:
        """A boolean for each token: `rate` of each row's tokens or words, rounded without bias, at least one."""
        row = rows.rows()
        eligible = ~self.special[rows.flat]
        begins = eligible.copy()
        if self.word_starts is not None:
            after_other = (rows.places() == 0) | ~np.concatenate([[True], eligible[:-1]])
            begins &= self.word_starts[rows.flat] | after_other
            # A text of one word would be hidden whole, with nothing left to infer it from: choose its tokens.
            words = np.bincount(row[begins], minlength=len(rows))
            begins |= eligible & (words == 1)[row]
        units = np.bincount(row[begins], minlength=len(rows)).astype(np.int64)
        count = np.floor(units * self.config.rate + uniform(keys, np.zeros(len(rows), dtype=np.int64)))
        unit_rows = Ragged(units, units)  # only the lengths are used
        unit_row = unit_rows.rows()
        draw = uniform(keys[unit_row], unit_rows.places() + 1)
        chosen = ranks(draw, unit_row, unit_rows.starts) < np.maximum(count, 1)[unit_row]
        if len(chosen) == 0:
            return np.zeros(len(row), dtype=bool)
        return eligible & chosen[np.maximum(np.cumsum(begins) - 1, 0)]

    def hide(self, rows: Ragged, chosen: np.ndarray, keys: np.ndarray) -> Ragged:
        """The rows with the chosen tokens masked, replaced or kept."""
        token_keys, place = keys[rows.rows()], rows.places()
        fate = uniform(token_keys, 2 * place + (1 << 32))
        random = self.ordinary[
            (uniform(token_keys, 2 * place + 1 + (1 << 32)) * len(self.ordinary)).astype(np.int64)
        ]
        masked = chosen & (fate < self.config.mask_share)
        replaced = chosen & ~masked & (fate < self.config.mask_share + self.config.random_share)
        return Ragged(np.where(masked, self.mask, np.where(replaced, random, rows.flat)), rows.lengths)

    def batch(
        self, rows: Ragged, keys: np.ndarray, collator: Collator, ids: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch of complete rows (special tokens included)."""
        chosen = self.choose(rows, keys)
        values = collator.stream(self.hide(rows, chosen, keys))
        values["targets"] = collator.like(rows, values, collator.pad)
        weight = Ragged(chosen.astype(np.int64), rows.lengths)
        values["target_weight"] = collator.like(weight, values).astype(np.float32)
        values["sample_ids"] = collator.per_row(ids.astype(np.int64), values, -1)
        return values


class Masked(Bucketed):
    """Batches of single texts with hidden tokens; texts beyond `max_length` are cut into several samples."""

    kind = "masked"

    def __init__(
        self,
        config: MaskedConfig,
        store: TokenStore,
        tokenizer: Tokenizer,
        seed: int,
        prompting: Prompting | None = None,
    ) -> None:
        self.store, self.tokenizer = store, tokenizer
        self.masker = Masker(config, tokenizer)
        self.collator = Collator(tokenizer.pad, config.length_multiple, config.row_multiple)
        prompting = prompting or Prompting(tokenizer)
        before, behind = prompting.text_frame
        self._around = np.array(before, dtype=np.int64)[None], np.array(behind, dtype=np.int64)[None]
        self.pieces = Pieces(store, config.max_length - len(before) - len(behind))
        languages = store.languages if store.languages is not None else np.zeros(len(store), dtype=np.int16)
        inputs = {"store": store.fingerprint, "tokenizer": tokenizer.fingerprint}
        inputs |= {} if prompting.own else {"layout": str((before, behind))}
        super().__init__(config, seed, languages[self.pieces.sequence], inputs, config.temperature)

    def sizes(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """[BOS] tokens [EOS], and no other stream."""
        return np.zeros(len(ids), dtype=np.int64), self.pieces.lengths[ids] + sum(
            part.size for part in self._around
        )

    def collate(self, ids: np.ndarray, epoch: int, step: int) -> Batch:
        """The pieces `ids`, masked for `step`, as one batch."""
        rows = self.pieces.gather(ids).around(*self._around)
        return to_batch(self.masker.batch(rows, row_keys(self.seed, "mask", step, ids), self.collator, ids))

    def describe(self) -> dict[str, Any]:
        """Rows, tokens and how many texts were cut."""
        return {"kind": self.kind, **self.pieces.describe(), "steps_per_epoch": self.steps_per_epoch}
