"""Who may see whom, and by which way attention is worked out: decided once per forward, shared by all layers.

A place sees the places of its own segment (document) in its row; padding is segment 0 and sees padding, so that
every row of scores has something to look at and padded rows stay finite. In a decoder it sees no later column, but
for those of a prefix, which every place of their segment sees. A window w hides what is w or more places away, a
prefix too. `None` for segments says: one document per row, no padding; then most forwards need no mask at all.

backend   what it is good for                                                       where
sdpa      torch's fused kernels; any mask as a bias, the causal order for free       anywhere
manual    soft-capping, sinks; bf16 rows of some hundreds; windows                     CPU (figures: choose_backend)
flex      blocks of scores that nobody may see are skipped; no B x T x S anywhere     GPU
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

Backend = Literal["sdpa", "manual", "flex"]
MANUAL_UP_TO = 512  # keys: how long rows a bf16 CPU takes by hand
ORDERED_UP_TO = 1024  # and where half of the scores need no work; longer rows are faster too, but cost memory
FLEX_FROM = 128  # places: the side of flex's blocks; below, there is nothing to skip
FLEX_DIM = 16  # the smallest head that flex's kernels take


@dataclass(frozen=True)
class Places:
    """One side of an attention: its segments (None: all one document) and positions, B x T (positions B or 1 x T).

    `prefix_BT` (bool) marks the places that are seen also by earlier ones.
    """

    segments_BT: Tensor | None
    positions_BT: Tensor
    prefix_BT: Tensor | None = None

    @property
    def length(self) -> int:
        """How many columns there are."""
        return self.positions_BT.shape[1]


@dataclass(frozen=True)
class Sight:
    """The rule of one mask, as data. `query` is `key`, or (with a cache) describes its last columns."""

    query: Places
    key: Places
    causal: bool = False
    window: int | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is hidden from anyone."""
        return self._segments() is None and not self.causal and self.window is None

    @property
    def triangle(self) -> bool:
        """Whether the columns' order is all that hides."""
        return self.ordered and self._segments() is None and self.window is None

    @property
    def ordered(self) -> bool:
        """Whether no column is ever seen from an earlier one."""
        return self.causal and self.query is self.key and self.key.prefix_BT is None

    def _segments(self) -> tuple[Tensor, Tensor] | None:
        query, key = self.query.segments_BT, self.key.segments_BT
        if query is None and key is None:
            return None
        query = torch.ones_like(self.query.positions_BT) if query is None else query
        return query, torch.ones_like(self.key.positions_BT) if key is None else key

    def sees(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether column `query` sees column `key` in `row`: index tensors of any shapes that broadcast."""
        parts = []
        segments = self._segments()
        if segments is not None:
            parts.append(_at(segments[0], row, query) == _at(segments[1], row, key))
        if self.causal:
            earlier = key <= query + (self.key.length - self.query.length)
            prefix = self.key.prefix_BT
            parts.append(earlier if prefix is None else earlier | _at(prefix, row, key))
        if self.window is not None:
            # Without a cache columns say the same as positions inside a segment, and are the same in all rows.
            same = self.query is self.key
            one = query if same else _at(self.query.positions_BT, row, query)
            two = key if same else _at(self.key.positions_BT, row, key)
            parts.append((two - one).abs() < self.window)
        return functools.reduce(operator.and_, parts) if parts else (query >= 0) & (key >= 0)

    @property
    def rows(self) -> int:
        """In how many rows the rule differs; 1 where all are alike."""
        used = [*(self._segments() or ())]
        if self.causal and self.key.prefix_BT is not None:
            used.append(self.key.prefix_BT)
        if self.window is not None and self.query is not self.key:
            used += [self.query.positions_BT, self.key.positions_BT]
        return max([1, *(tensor.shape[0] for tensor in used)])

    def table(self) -> Tensor:
        """(B or 1, 1, T, S): the rule as one tensor."""
        device = self.key.positions_BT.device
        row_B = torch.arange(self.rows, device=device)[:, None, None]
        query_T, key_S = (torch.arange(side.length, device=device) for side in (self.query, self.key))
        return self.sees(row_B, query_T[None, :, None], key_S[None, None])[:, None]

    def blocks(self) -> BlockMask:
        """The rule by blocks of scores, for flex."""

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return self.sees(row, query, key)

        rows = self.rows
        return create_block_mask(
            sees,
            None if rows == 1 else rows,
            None,
            self.query.length,
            self.key.length,
            device=self.key.positions_BT.device,
        )


def _at(values_BT: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return values_BT[row, column] if values_BT.shape[0] > 1 else values_BT[0, column]


@dataclass(frozen=True)
class AttentionMask:
    """What `attend` goes by. Made by hand, it is a `bias` (0 or -inf, or a learned one) or the causal order.

    `blind`: some query may see nothing. `ordered`, `window`: what `bias` hides for sure, later columns and those that
    are `window` or more before; whoever works by hand leaves them out. `sight` and `learned`, where `bias` is not
    made: what it would be made of.
    """

    bias: Tensor | None = None
    causal: bool = False
    backend: Backend = "sdpa"
    blind: bool = True
    ordered: bool = False
    window: int | None = None
    sight: Sight | None = None
    learned: Tensor | None = None
    blocks: BlockMask | None = None

    def dense(self, dtype: torch.dtype) -> AttentionMask:
        """The same mask for whoever needs it as one tensor."""
        if self.backend != "flex" or self.sight is None:
            return self
        return _by_hand(self.sight, self.learned, dtype, self.blind)


class Needs(NamedTuple):
    """What a stack's attentions ask of the way they are worked out."""

    scores: bool = False  # soft-capping or sinks, which SDPA does not know
    dropout: bool = False  # which flex does not know
    dim: int = 64  # of the smallest head


NOTHING = Needs()


def choose_backend(sight: Sight, learned: Tensor | None, dtype: torch.dtype, needs: Needs) -> Backend:
    """The fastest way, by benchmarks/results/2026-11-25_attention.md; the rule for GPUs is by reasoning alone.

    By hand, bf16 scores are rounded before the softmax; that file says what it costs.
    """
    width, length = sight.query.length, sight.key.length
    device = _kind(sight.key)
    masked = learned is not None or not (sight.everything or sight.triangle)
    fits = not needs.dropout and needs.dim >= FLEX_DIM and width >= FLEX_FROM
    if device == "cuda" and fits and (masked or needs.scores):
        return "flex"
    if needs.scores:
        return "manual"
    if device == "cpu":
        if learned is not None and learned.requires_grad:  # SDPA's kernels have no gradient for a bias
            return "manual"
        if sight.ordered and sight.window is not None and 2 * sight.window <= length:
            return (
                "manual"  # strips of queries leave out what lies before their windows; SDPA works it all out
            )
        few = ORDERED_UP_TO if sight.ordered else MANUAL_UP_TO
        if dtype == torch.bfloat16 and (width == 1 or length <= few):
            return "manual"
    return "sdpa"


def _kind(places: Places) -> str:
    return places.positions_BT.device.type


def build_mask(
    sight: Sight, learned: Tensor | None, dtype: torch.dtype, needs: Needs, blind: bool
) -> AttentionMask:
    """The cheapest mask that says `sight`, for the way that `choose_backend` takes.

    `learned` is a bias (B or 1, H, T, S) to add; `blind`: some query may see nothing.
    """
    backend = choose_backend(sight, learned, dtype, needs)
    if backend == "flex":
        blocks = None if sight.everything else sight.blocks()
        return AttentionMask(backend=backend, blind=blind, sight=sight, learned=learned, blocks=blocks)
    if backend == "sdpa" and learned is None and sight.triangle:
        return AttentionMask(causal=True, blind=False)
    if backend == "manual":
        return _by_hand(sight, learned, dtype, blind)
    return AttentionMask(_bias(sight, learned, dtype), backend=backend, blind=blind)


def _by_hand(sight: Sight, learned: Tensor | None, dtype: torch.dtype, blind: bool) -> AttentionMask:
    bias, window = _bias(sight, learned, dtype), sight.window if sight.ordered else None
    return AttentionMask(bias, backend="manual", blind=blind, ordered=sight.ordered, window=window)


def _bias(sight: Sight, learned: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if sight.everything:
        return None if learned is None else learned.to(dtype)
    allowed = sight.table()
    hidden = torch.full((), -torch.inf, dtype=dtype, device=allowed.device)
    shown = torch.zeros((), dtype=dtype, device=allowed.device) if learned is None else learned.to(dtype)
    return torch.where(allowed, shown, hidden)


def is_plain(segments_BT: Tensor | None) -> bool:
    """Whether every row is known to be one document without padding.

    Looking costs a synchronization on a GPU and a graph break under torch.compile, so there the answer is no.
    """
    if segments_BT is None:
        return True
    if torch.compiler.is_compiling() or segments_BT.device.type != "cpu":
        return False
    return bool((segments_BT == 1).all())


def positions_in_segments(segments_BT: Tensor) -> Tensor:
    """B x T: each place's distance from the first place of its run of equal segments."""
    column_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return column_T - torch.where(starts_BT, column_T, 0).cummax(dim=1).values


def distances(query: Places, key: Places) -> Tensor:
    """(B or 1, T, N) key position - query position.

    Without a cache the columns say the same inside a segment, and are the same in all rows: one table serves all.
    """
    if query is key:
        column_T = torch.arange(query.length, device=query.positions_BT.device)
        return (column_T - column_T[:, None])[None]
    return key.positions_BT[:, None, :] - query.positions_BT[:, :, None]


def self_masks(
    query: Places,
    key: Places,
    causal: bool,
    windows: Iterable[int | None],
    learned: Tensor | None,
    dtype: torch.dtype,
    needs: Needs = NOTHING,
) -> dict[int | None, AttentionMask]:
    """The mask of each window among a stack's blocks. `query` is `key`, or (with a cache) its last columns.

    `learned` is a bias (B or 1, H, T, N) to add. A window w lets a place see places nearer than w.
    """
    made: dict[int | None, AttentionMask] = {}  # by the window that bites: all too wide ones share one mask
    masks = {}
    for window in set(windows):
        wide = window is None or (window >= key.length and not torch.compiler.is_compiling())
        bites = None if wide else window
        if bites not in made:
            # The one new column of a step of decoding is the last: it sees all, so there is no order to mind.
            sight = Sight(query, key, causal and query.length > 1, bites)
            made[bites] = build_mask(sight, learned, dtype, needs, blind=False)
        masks[window] = made[bites]
    return masks


def cross_mask(query: Places, key: Places, dtype: torch.dtype, needs: Needs = NOTHING) -> AttentionMask:
    """Decoder places see the source places of their own segment; where there are none, attention gives zeros."""
    sight = Sight(query, key)
    return build_mask(sight, None, dtype, needs, blind=not sight.everything)
