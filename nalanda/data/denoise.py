"""Denoising: the model reads damaged text and writes it whole (or what is missing from it).

    encoder   [TAG of the text's own language] noised tokens [EOS]
    decoder   [BOS] tokens   ->   tokens [EOS]           (models of others: as for pairs of one language)

Each row gets one kind of noise, drawn by the config's weights:

    edit       tokens deleted, replaced, added, and spans replaced by one mask token
               (BART: Lewis et al., 2020; token noise as in Lample et al., 2018)
    sentinels  spans replaced by sentinels, which the target lists with what they hide (T5: Raffel et al., 2020):
               "a b c d e" -> source "a <0> d e", target "<0> b c <1>"
    romanize   the text in Latin letters, from a second store made at build time
    clean      none: the text is copied

All randomness is keyed by (seed, step, sample), and a whole batch is noised at once: no loop over rows or tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from nalanda.base.errors import DataError
from nalanda.config import Config
from nalanda.data.batch import Batch
from nalanda.data.noise import row_keys, uniform
from nalanda.data.pairs import Frames, languages
from nalanda.data.pieces import Pieces
from nalanda.data.ragged import Ragged, concatenate, ranks
from nalanda.data.source import Bucketed, Collator, TextConfig
from nalanda.data.store import TokenStore
from nalanda.generate.prompting import Prompting

if TYPE_CHECKING:
    from nalanda.tokenizer.tokenizer import Tokenizer

KINDS = ("edit", "sentinels", "romanize", "clean")


class NoiseWeights(Config):
    """How often each kind of noise is drawn; the weights need not sum to 1."""

    edit: float = Field(default=1.0, ge=0)
    sentinels: float = Field(default=0.0, ge=0)
    romanize: float = Field(default=0.0, ge=0)
    clean: float = Field(default=0.0, ge=0)

    def values(self) -> np.ndarray:
        """The weights in the order of KINDS."""
        return np.array([self.edit, self.sentinels, self.romanize, self.clean])

    @model_validator(mode="after")
    def _some(self) -> NoiseWeights:
        if self.values().sum() <= 0:
            raise ValueError("all weights are 0; give at least one kind of noise a weight")
        return self


class DenoiseConfig(TextConfig):
    """Denoising of single texts. Rates are shares of tokens; `span` is the mean length of a masked span."""

    kind: Literal["denoise"] = "denoise"
    noise: NoiseWeights = NoiseWeights()
    mask: float = Field(0.2, ge=0, le=0.9)
    span: float = Field(2.5, ge=1)
    delete: float = Field(0.05, ge=0, le=0.9)
    replace: float = Field(0.05, ge=0, le=0.9)
    add: float = Field(0.05, ge=0, le=0.9)
    temperature: float = Field(1.0, ge=1.0)

    @model_validator(mode="after")
    def _rates_fit(self) -> DenoiseConfig:
        if self.delete + self.replace > 0.9:
            raise ValueError(f"delete {self.delete} + replace {self.replace} is more than 0.9; lower them")
        return self


def span_mask(rows: Ragged, keys: np.ndarray, rate: float, mean: float, least: int = 0) -> np.ndarray:
    """Marks spans: a boolean for each token, with `rate` of every row's tokens in spans of `mean` length.

    The number of marked tokens is rounded up or down at random (without bias), to at least `least`. They are cut
    at random into spans, and the spans are put into different gaps between the unmarked tokens, all choices
    equally likely. (`random_spans_noise_mask` of Raffel et al., 2020, always leaves the first token clear and
    marks the last; in texts of a few words that would be most of what there is to learn.)
    """
    total, first = rows.lengths, np.zeros(len(rows), dtype=np.int64)
    marked = np.floor(total * rate + uniform(keys, first)).astype(np.int64)
    marked = np.minimum(np.maximum(marked, least), total)
    clear = total - marked
    spans = np.floor(marked / mean + uniform(keys, first + 1)).astype(np.int64)
    spans = np.minimum(np.maximum(spans, 1), np.minimum(marked, clear + 1))
    gaps, tokens = Ragged(first, clear + 1), Ragged(first, marked)  # only their lengths are used
    gap_row, gap_place = gaps.rows(), gaps.places()
    chosen = gap_place[_lowest(uniform(keys[gap_row], gap_place + 2), gaps, gap_row, spans)]
    row, place = tokens.rows(), tokens.places()
    draw = uniform(keys[row], place + (1 << 31))
    draw[place == 0] = -1.0  # the first marked token always begins a span
    span = np.cumsum(_lowest(draw, tokens, row, spans)) - 1
    mask = np.zeros(len(rows.flat), dtype=bool)
    mask[rows.starts[row] + place + chosen[span]] = True
    return mask


def _lowest(draw: np.ndarray, rows: Ragged, row: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Marks the `count` lowest draws of each row."""
    return ranks(draw, row, rows.starts) < count[row]


def edit(rows: Ragged, keys: np.ndarray, config: DenoiseConfig, mask: int, supply: np.ndarray) -> Ragged:
    """Rows with tokens masked, deleted, replaced and added; new tokens are drawn from `supply`."""
    row, place = rows.rows(), rows.places()
    token_keys = keys[row]
    masked = (
        span_mask(rows, keys, config.mask, config.span) if config.mask else np.zeros(len(row), dtype=bool)
    )
    opens = masked & ((place == 0) | ~np.concatenate([[False], masked[:-1]]))
    base = 4 * place + (1 << 32)  # counters of these draws, apart from those of the spans
    choice = uniform(token_keys, base)
    deleted = ~masked & (choice < config.delete)
    replaced = ~masked & ~deleted & (choice < config.delete + config.replace)
    added = uniform(token_keys, base + 1) < config.add
    copies = ((~masked & ~deleted) | opens).astype(np.int64) + (added & ~(masked & ~opens))
    left = np.bincount(row, weights=copies, minlength=len(rows.lengths))
    copies[left[row] == 0] = 1  # a row never loses everything
    drawn = supply[(uniform(token_keys, base + 2) * len(supply)).astype(np.int64)]
    extra = supply[(uniform(token_keys, base + 3) * len(supply)).astype(np.int64)]
    value = np.where(opens, mask, np.where(replaced, drawn, rows.flat))
    origin = np.repeat(np.arange(len(row)), copies)
    flat = value[origin]
    # Of two copies the first is the added token; a lone copy is the token itself, unless that was deleted.
    front = np.concatenate([[True], origin[1:] != origin[:-1]]) if len(origin) else np.empty(0, dtype=bool)
    only_added = added & deleted
    new = front & ((copies[origin] == 2) | only_added[origin])
    flat[new] = extra[origin[new]]
    return Ragged(flat, np.bincount(row, weights=copies, minlength=len(rows.lengths)).astype(np.int64))


def sentinel_spans(
    rows: Ragged, keys: np.ndarray, rate: float, mean: float, sentinels: np.ndarray
) -> tuple[Ragged, Ragged]:
    """(source, target) of span corruption; a row has at most len(sentinels) - 1 spans, later ones stay clear."""
    row, place = rows.rows(), rows.places()
    hidden = span_mask(rows, keys, rate, mean, 1)
    opens = hidden & ((place == 0) | ~np.concatenate([[False], hidden[:-1]]))
    starts = rows.starts
    count = np.cumsum(opens)
    number = count - 1 - (count[starts] - opens[starts])[row]  # the span's number inside its row
    fits = number < len(sentinels) - 1
    hidden, opens = hidden & fits, opens & fits
    source = Ragged(
        np.where(opens, sentinels[np.maximum(number, 0) % len(sentinels)], rows.flat), rows.lengths
    )
    source = source.keep(~hidden | opens)
    copies = hidden.astype(np.int64) + opens
    origin = np.repeat(np.arange(len(row)), copies)
    flat = rows.flat[origin]
    front = np.concatenate([[True], origin[1:] != origin[:-1]]) & opens[origin]
    flat[front] = sentinels[number[origin[front]]]
    spans = np.bincount(row, weights=opens, minlength=len(rows.lengths)).astype(np.int64)
    lengths = np.bincount(row, weights=copies, minlength=len(rows.lengths)).astype(np.int64)
    return source, Ragged(flat, lengths).affix(suffix=sentinels[spans])


class Denoise(Bucketed):
    """Batches of texts to restore. `romanized` holds, for each sequence, its tokens in Latin letters, or none
    where there is nothing to romanize; such rows get one of the other kinds."""

    kind = "denoise"

    def __init__(
        self,
        config: DenoiseConfig,
        store: TokenStore,
        tokenizer: Tokenizer,
        seed: int,
        romanized: TokenStore | None = None,
        prompting: Prompting | None = None,
    ) -> None:
        self.noise, self.store, self.romanized, self.tokenizer = config, store, romanized, tokenizer
        weights = config.noise.values()
        if weights[1] and len(tokenizer.sentinels) < 2:
            raise DataError(
                "data.noise.sentinels: the tokenizer has no sentinels (<extra_0> or <extra_id_0> and on); take one "
                "that has (T5's, or your own with 32 or more of them), or set this weight to 0"
            )
        prompting = prompting or Prompting(tokenizer)
        if weights[0] and config.mask and not prompting.own and tokenizer.role("mask") is None:
            raise DataError(
                "data.noise.edit: the tokenizer has no mask token; "
                + ("use noise: {edit: 0, sentinels: 1}" if len(tokenizer.sentinels) > 1 else "set mask: 0")
            )
        self._masks = bool(weights[0] and config.mask)
        if weights[2] and (romanized is None or len(romanized) != len(store)):
            raise DataError(
                f"data.noise.romanize: {store.folder} has no romanized store of the same sequences"
            )
        self.sentinels = np.array(tokenizer.sentinels, dtype=np.int64)
        self.collator = Collator(tokenizer.pad, config.length_multiple, config.row_multiple)
        frames = Frames.of(store, store, prompting)
        self._around, self._beside = frames.source_length, frames.target_length
        self.pieces = Pieces(store, config.max_length - max(self._around, self._beside))
        self._frames = frames.take(self.pieces.sequence)
        self._latin = self._latin_lengths(weights[2] > 0)
        self._chances = self._tables(weights)
        inputs = {"store": store.fingerprint, "tokenizer": tokenizer.fingerprint, **frames.fingerprint}
        if romanized is not None and weights[2]:
            inputs["romanized"] = romanized.fingerprint
        super().__init__(config, seed, self._frames.group, inputs, config.temperature)

    def _latin_lengths(self, wanted: bool) -> np.ndarray:
        """Tokens of each piece in Latin letters; 0 where it has none, was split, or they would be too long."""
        if not wanted or self.romanized is None:
            return np.zeros(len(self.pieces), dtype=np.int64)
        lengths = self.romanized.lengths[self.pieces.sequence].copy()
        lengths[~self.pieces.whole | (lengths > self.noise.max_length - self._around)] = 0
        return lengths

    @staticmethod
    def _tables(weights: np.ndarray) -> np.ndarray:
        """Cumulated chances of KINDS: row 0 for texts that cannot be romanized, row 1 for those that can."""
        without = weights * np.array([1, 1, 0, 1])
        if without.sum() == 0:
            without = np.array([0.0, 0, 0, 1])
        return np.stack([np.cumsum(w) / w.sum() for w in (without, weights)])

    def sizes(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The undamaged lengths: noise is drawn by step, the plan by epoch."""
        lengths = self.pieces.lengths[ids]
        return np.maximum(lengths, self._latin[ids]) + self._around, lengths + self._beside

    def kinds(self, ids: np.ndarray, step: int) -> np.ndarray:
        """Which of KINDS each sample gets at a step, as an index."""
        draw = uniform(row_keys(self.seed, "kind", step, ids), np.zeros(len(ids), dtype=np.int64))
        chances = self._chances[(self._latin[ids] > 0).astype(np.int64)]
        return np.minimum((draw[:, None] >= chances).sum(axis=1), len(KINDS) - 1)

    def collate(self, ids: np.ndarray, epoch: int, step: int) -> Batch:
        """The samples `ids`, noised for `step`, as one batch."""
        config, clean = self.noise, self.pieces.gather(ids)
        keys = row_keys(self.seed, "denoise", step, ids)
        kinds = self.kinds(ids, step)
        sources, targets, members = [], [], []
        for kind, name in enumerate(KINDS):
            rows = np.flatnonzero(kinds == kind)
            if len(rows) == 0:
                continue
            source = target = clean.take(rows)
            if name == "edit":
                mask = self.tokenizer.mask if self._masks else -1
                source = edit(target, keys[rows], config, mask, self.store.tokens)
            elif name == "sentinels":
                source, target = sentinel_spans(source, keys[rows], config.mask, config.span, self.sentinels)
            elif name == "romanize":
                assert self.romanized is not None
                source = self.romanized.gather(self.pieces.sequence[ids[rows]])
            sources.append(source)
            targets.append(target)
            members.append(rows)
        back = np.argsort(np.concatenate(members))
        source = concatenate(sources).take(back).head(config.max_length - self._around)
        frames = self._frames.take(ids)
        target = frames.target(concatenate(targets).take(back))
        return self.collator.pairs(frames.source(source), target, frames.start, ids)

    def describe(self) -> dict[str, Any]:
        """Rows, tokens, how many texts were split, and how many can be romanized."""
        spoken = languages(self.store, False)[self.pieces.sequence]
        return {
            "kind": self.kind,
            **self.pieces.describe(),
            "romanized": int((self._latin > 0).sum()),
            "rows_by_language": {
                code: int((spoken == index).sum()) for index, code in enumerate(self.store.codes)
            },
            "steps_per_epoch": self.steps_per_epoch,
        }
