"""BERT's pre-training: is B the sentence after A, and which tokens are hidden in both (Devlin et al., 2019).

    ids          [BOS] A ... [EOS] B ... [EOS]       labels  0 = B follows A in its text
    token_types    0   0 ...   0   1 ...   1                 1 = B is a sentence of another text

Half of the pairs are random ones, drawn anew every epoch: label and B are keyed by (seed, epoch, sample), so that
batches can be planned by length; the masks are keyed by (seed, step, sample). The store holds one sentence per
sequence, those of a text one after the other; its `samples` say to which text each belongs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nalanda.base.errors import DataError
from nalanda.data.batch import Batch
from nalanda.data.masking import Masker, MaskingConfig
from nalanda.data.noise import row_keys, uniform
from nalanda.data.ragged import Ragged, gather, join
from nalanda.data.source import Bucketed, Collator, to_batch
from nalanda.data.store import TokenStore
from nalanda.generate.prompting import Prompting

if TYPE_CHECKING:
    from nalanda.tokenizer.tokenizer import Tokenizer


_ENDS = re.compile(r"(?<=[.!?।॥۔။])\s+|\s*\n\s*")


def sentences(text: str) -> list[str]:
    """The sentences of `text`: it ends one at a line's end and at [.!?], danda or full stop before white space."""
    return [part.strip() for part in _ENDS.split(text) if part.strip()]


class NextSentenceConfig(MaskingConfig):
    """Masked tokens and next sentence together."""

    kind: Literal["next_sentence"] = "next_sentence"


class NextSentence(Bucketed):
    """Batches of sentence pairs; a sentence longer than half a row is cut at its end, and counted."""

    kind = "next_sentence"

    def __init__(
        self,
        config: NextSentenceConfig,
        store: TokenStore,
        tokenizer: Tokenizer,
        seed: int,
        prompting: Prompting | None = None,
    ) -> None:
        if store.samples is None:
            raise DataError(
                f"{store.folder}: does not say which text a sentence belongs to; delete it and run again"
            )
        self.store, self.tokenizer = store, tokenizer
        text = store.samples
        self.firsts = np.flatnonzero(text[1:] == text[:-1])
        if len(self.firsts) == 0 or text[0] == text[-1]:
            raise DataError(
                f"{store.folder}: next-sentence pairs need at least two texts, one of them with two sentences"
            )
        _, first, sentences = np.unique(text, return_index=True, return_counts=True)
        number = np.cumsum(np.concatenate([[False], text[1:] != text[:-1]]))
        if len(first) != number[-1] + 1:
            raise DataError(
                f"{store.folder}: the sentences of a text are not together; delete it and run again"
            )
        self._single = int((sentences == 1).sum())
        self._begin = np.flatnonzero(np.concatenate([[True], text[1:] != text[:-1]]))[number]
        self._count = np.bincount(number)[number]
        prompting = prompting or Prompting(tokenizer)
        self._frame = tuple(np.array(part, dtype=np.int64)[None] for part in prompting.pair_frame)
        self._more = sum(part.size for part in self._frame)
        # A model without embeddings for the second sentence reads both as the first.
        spec = prompting.spec
        self._second_type = int(prompting.own or spec is None or spec.token_types > 1)
        self._lengths = np.minimum(store.lengths, (config.max_length - self._more) // 2)
        self.masker = Masker(config, tokenizer)
        self.collator = Collator(tokenizer.pad, config.length_multiple, config.row_multiple)
        inputs = {"store": store.fingerprint, "tokenizer": tokenizer.fingerprint}
        inputs |= {} if prompting.own else {"layout": str((prompting.pair_frame, self._second_type))}
        super().__init__(config, seed, np.zeros(len(self.firsts), dtype=np.int64), inputs)

    def second(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(sentence number of B, label) of samples in an epoch."""
        keys = row_keys(self.seed, "next", epoch, ids)
        zero = np.zeros(len(ids), dtype=np.int64)
        random = uniform(keys, zero) < 0.5
        first = self.firsts[ids]
        # Every sentence outside the text is equally likely: count past the text's own.
        others = len(self.store) - self._count[first]
        drawn = (uniform(keys, zero + 1) * others).astype(np.int64)
        drawn += np.where(drawn >= self._begin[first], self._count[first], 0)
        return np.where(random, drawn, first + 1), random.astype(np.int64)

    def sizes(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """[BOS] A [EOS] B [EOS], and no other stream."""
        second, _ = self.second(ids, epoch)
        lengths = self._lengths[self.firsts[ids]] + self._lengths[second] + self._more
        return np.zeros(len(ids), dtype=np.int64), lengths

    def _sentences(self, numbers: np.ndarray) -> Ragged:
        return gather(self.store.tokens, self.store.offsets[numbers], self._lengths[numbers])

    def collate(self, ids: np.ndarray, epoch: int, step: int) -> Batch:
        """The pairs `ids` of an epoch, masked for `step`, as one batch."""
        before, between, behind = self._frame
        second, labels = self.second(ids, epoch)
        a = self._sentences(self.firsts[ids]).around(before, between)
        b = self._sentences(second).around(np.empty((1, 0), dtype=np.int64), behind)
        rows = join(a, b)
        values = self.masker.batch(rows, row_keys(self.seed, "mask", step, ids), self.collator, ids)
        second_half = rows.places() >= a.lengths[rows.rows()]
        types = Ragged(second_half.astype(np.int64) * self._second_type, rows.lengths)
        values["token_types"] = self.collator.like(types, values).astype(np.int32)
        values["labels"] = self.collator.per_row(labels, values, 0)
        values["label_weight"] = self.collator.per_row(np.ones(len(ids), dtype=np.float32), values, 0)
        return to_batch(values)

    def describe(self) -> dict[str, Any]:
        """Pairs, sentences, sentences that are cut, and texts of one sentence (which begin no pair)."""
        return {
            "kind": self.kind,
            "rows": len(self.firsts),
            "sentences": len(self.store),
            "tokens": int(self._lengths.sum()),
            "truncated": int((self.store.lengths > self._lengths).sum()),
            "single_sentence_texts": self._single,
            "corpus": self.store.meta.get("counts", {}),
            "steps_per_epoch": self.steps_per_epoch,
        }
