"""What generation keeps between steps: keys and values of all places seen, owned by one batch of requests.

    cache = Cache(capacity=max_length)
    transformer(prompt_ids, prompt_segments, cache=cache, source_ids_BS=...)   # the source is encoded here, once
    transformer(next_ids, cache=cache)                                          # one column for every row
    cache.select(rows)                                                          # beams reordered, rows dropped

Rows may be padded on either side in the first call. Nothing is shared between caches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nalanda.nn.mask import Places, is_plain


class LayerCache:
    """Keys and values of one block, (B, G, capacity, K) with room to grow; the source's, (B, G, S, K), are final."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.keys_BGNK: Tensor | None = None
        self.values_BGNK: Tensor | None = None
        self.cross: tuple[Tensor, Tensor] | None = None

    def extend(self, keys_BGTK: Tensor, values_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new places behind the old ones; returns views of all."""
        if self.keys_BGNK is None or self.values_BGNK is None:
            rows, groups, _, dim = keys_BGTK.shape
            self.keys_BGNK = keys_BGTK.new_empty(rows, groups, self.capacity, dim)
            self.values_BGNK = values_BGTK.new_empty(rows, groups, self.capacity, dim)
        end = self.length + keys_BGTK.shape[2]
        self.keys_BGNK[:, :, self.length : end] = keys_BGTK
        self.values_BGNK[:, :, self.length : end] = values_BGTK
        self.length = end
        return self.keys_BGNK[:, :, :end], self.values_BGNK[:, :, :end]

    def select(self, rows: Tensor, source: bool) -> None:
        """Keeps the given rows, in the given order; `source`: also of the source's keys and values."""
        if self.keys_BGNK is not None and self.values_BGNK is not None:
            self.keys_BGNK = self._rows(self.keys_BGNK, rows)
            self.values_BGNK = self._rows(self.values_BGNK, rows)
        if source and self.cross is not None:
            self.cross = (self.cross[0].index_select(0, rows), self.cross[1].index_select(0, rows))

    def _rows(self, old: Tensor, rows: Tensor) -> Tensor:
        new = old.new_empty(len(rows), *old.shape[1:])
        new[:, :, : self.length] = old[:, :, : self.length].index_select(0, rows)
        return new


class Cache:
    """The state of one batch of requests. Each row is one document (segment 1) and padding (segment 0)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.plain = True
        self.layers: list[LayerCache] = []
        self.source: Places | None = None
        self._segments_BN: Tensor | None = None
        self._positions_BN: Tensor | None = None
        self._next_B: Tensor | None = None
        self._last_B: Tensor | None = None

    def layer(self, index: int) -> LayerCache:
        """The cache of block `index`, made when first asked for."""
        while len(self.layers) <= index:
            self.layers.append(LayerCache(self.capacity))
        return self.layers[index]

    def extend(
        self,
        rows: int,
        width: int,
        segments_BT: Tensor | None,
        positions_BT: Tensor | None,
        device: torch.device,
    ) -> tuple[Places, Places]:
        """Adds `width` columns: the new places, and all places so far.

        Positions that are not given go on from each row's last one. Raises ValueError when the capacity is spent.
        """
        if self.length + width > self.capacity:
            raise ValueError(f"cache of {self.capacity} places cannot take {width} more after {self.length}")
        if segments_BT is None:
            segments_BT = torch.ones(rows, width, dtype=torch.int32, device=device)
        else:
            self.plain = self.plain and is_plain(segments_BT)
        if self._segments_BN is None or self._positions_BN is None or self._next_B is None:
            self._segments_BN = segments_BT.new_zeros(rows, self.capacity)
            self._positions_BN = torch.zeros(rows, self.capacity, dtype=torch.int64, device=device)
            self._next_B = torch.zeros(rows, dtype=torch.int64, device=device)
        real_BT = (segments_BT > 0).long()
        if positions_BT is None:
            positions_BT = (self._next_B[:, None] + real_BT.cumsum(1) - 1).clamp(min=0)
        self._next_B = torch.where(real_BT.any(1), (positions_BT * real_BT).amax(1) + 1, self._next_B)
        end = self.length + width
        self._segments_BN[:, self.length : end] = segments_BT
        self._positions_BN[:, self.length : end] = positions_BT
        self.length = end
        new = Places(None if self.plain else segments_BT, positions_BT)
        if end == width:
            return new, new
        return new, Places(None if self.plain else self._segments_BN[:, :end], self._positions_BN[:, :end])

    def follow(self, ids_BT: Tensor, before_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """`before_BT`, the token before each of the new ones and -1 where none is among them, with each row's last
        token of earlier calls in front of its first new one; remembers the last ones."""
        real_BT = torch.ones_like(ids_BT, dtype=torch.bool) if segments_BT is None else segments_BT > 0
        rows = torch.arange(len(ids_BT), device=ids_BT.device)
        last_B = ids_BT.new_full((len(ids_BT),), -1) if self._last_B is None else self._last_B
        first_B = real_BT.int().argmax(1)
        before_BT = before_BT.clone()
        before_BT[rows, first_B] = last_B
        final_B = ids_BT.shape[1] - 1 - real_BT.int().flip(1).argmax(1)
        self._last_B = torch.where(real_BT.any(1), ids_BT[rows, final_B], last_B)
        return before_BT

    def select(self, rows: Tensor, source: bool = True) -> None:
        """Keeps the given rows (int64), in the given order, repeats allowed.

        `source=False` leaves the source's keys and values alone: for reordering among rows of equal sources (beams).
        """
        for layer in self.layers:
            layer.select(rows, source)
        if self._segments_BN is not None and self._positions_BN is not None and self._next_B is not None:
            self._segments_BN = self._segments_BN.index_select(0, rows)
            self._positions_BN = self._positions_BN.index_select(0, rows)
            self._next_B = self._next_B.index_select(0, rows)
        if self._last_B is not None:
            self._last_B = self._last_B.index_select(0, rows)
        if source and self.source is not None:
            segments, positions = self.source.segments_BT, self.source.positions_BT
            self.source = Places(
                None if segments is None else segments.index_select(0, rows),
                positions if positions.shape[0] == 1 else positions.index_select(0, rows),
            )
