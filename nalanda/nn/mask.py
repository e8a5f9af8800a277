"""Who may see whom, worked out once per forward and shared by all layers.

A place sees the places of its own segment (document) in its row; padding is segment 0 and sees padding, so that every
row of scores has something to look at and padded rows stay finite. In a decoder it sees no later column. `None` for
segments says: one document per row and no padding, and then most forwards need no mask at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionMask:
    """What `attend` adds to the scores: `bias` (0 or -inf, or a learned bias; None: nothing), or the causal order."""

    bias: Tensor | None = None
    causal: bool = False


@dataclass(frozen=True)
class Places:
    """One side of an attention: its segments (None: all one document) and positions, B x T (positions B or 1 x T)."""

    segments_BT: Tensor | None
    positions_BT: Tensor

    @property
    def length(self) -> int:
        """How many columns there are."""
        return self.positions_BT.shape[1]


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


def _same_segment(query: Places, key: Places) -> Tensor | None:
    if query.segments_BT is None and key.segments_BT is None:
        return None
    query_BT = query.segments_BT if query.segments_BT is not None else torch.ones_like(query.positions_BT)
    key_BS = key.segments_BT if key.segments_BT is not None else torch.ones_like(key.positions_BT)
    return query_BT[:, None, :, None] == key_BS[:, None, None, :]


def _both(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return two if one is None else one if two is None else one & two


def _bias(allowed: Tensor | None, learned: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if allowed is None:
        return None if learned is None else learned.to(dtype)
    hidden = torch.full((), -torch.inf, dtype=dtype, device=allowed.device)
    shown = torch.zeros((), dtype=dtype, device=allowed.device) if learned is None else learned.to(dtype)
    return torch.where(allowed, shown, hidden)


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
) -> dict[int | None, AttentionMask]:
    """The mask of each window among a stack's blocks. `query` is `key`, or (with a cache) its last columns.

    `learned` is a bias (B or 1, H, T, N) to add. A window w lets a place see places nearer than w.
    """
    allowed = _same_segment(query, key)
    ordered = causal and query.length > 1
    windows = set(windows)
    if ordered and allowed is None and learned is None and windows == {None} and query is key:
        return {None: AttentionMask(causal=True)}
    if ordered:
        column_N = torch.arange(key.length, device=key.positions_BT.device)
        allowed = _both(allowed, (column_N <= column_N[-query.length :, None])[None, None])
    masks = {}
    for window in windows:
        near = None if window is None else (distances(query, key).abs() < window)[:, None]
        masks[window] = AttentionMask(_bias(_both(allowed, near), learned, dtype))
    return masks


def cross_mask(query: Places, key: Places, dtype: torch.dtype) -> AttentionMask:
    """Decoder places see the source places of their own segment; where there are none, attention gives zeros."""
    return AttentionMask(_bias(_same_segment(query, key), None, dtype))
