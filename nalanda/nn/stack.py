"""A stack of blocks with what they share: positions, masks, rotary tables, relative bias, the norm at the end.

token vectors -> embed -> block 0 ... block L-1 -> norm -> hidden states
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nalanda.nn.block import Block, Shared
from nalanda.nn.cache import Cache
from nalanda.nn.embed import Embed
from nalanda.nn.initialize import initialize
from nalanda.nn.mask import AttentionMask, Needs, Places, cross_mask, distances, self_masks
from nalanda.nn.norm import build_norm
from nalanda.nn.position import RelativeBias
from nalanda.nn.rotary import Rotary, Tables
from nalanda.nn.spec import BlockSpec, PositionSpec, Spec

CAPTURES = ("residuals", "attention", "cross_attention", "router", "experts")


class Memory(NamedTuple):
    """The encoder's output. `segments_BS` None: one document per row and no padding."""

    states_BSD: Tensor
    segments_BS: Tensor | None
    positions_BS: Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that products are taken in: autocast's where it is on, else `x`'s own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class Stack(nn.Module):
    """An encoder (`causal` False) or a decoder (True)."""

    def __init__(
        self, spec: Spec, blocks: tuple[BlockSpec, ...], position: PositionSpec, causal: bool
    ) -> None:
        super().__init__()
        attentions = [a for block in blocks for a in (block.attention, block.cross) if a is not None]
        rotaries = list(dict.fromkeys((a.rotary, a.dim(spec.hidden)) for a in attentions if a.rotary))
        self.causal = causal
        self.scores = any(a.softcap is not None or a.sinks for a in attentions)
        self.attention_dropout = any(a.dropout > 0 for a in attentions)
        self.head_dim = min(a.dim(spec.hidden) for a in attentions)
        self.windows = sorted({block.attention.window for block in blocks}, key=lambda window: window or 0)
        self.embed = Embed(spec, position)
        self.rotaries = nn.ModuleList(Rotary(rotary, dim) for rotary, dim in rotaries)
        heads = blocks[0].attention.heads
        self.relative = RelativeBias(position, heads, not causal) if position.kind == "relative" else None
        self.blocks = nn.ModuleList(Block(block, spec.hidden, rotaries) for block in blocks)
        self.norm = build_norm(blocks[-1].norm, spec.hidden) if spec.final_norm else None
        initialize(self, spec, len(blocks))

    def forward(
        self,
        x_BTD: Tensor,
        query: Places,
        key: Places,
        token_types_BT: Tensor | None,
        memory_BSD: Tensor | None,
        source: Places | None,
        cache: Cache | None,
        captured: dict[str, list[Tensor]],
    ) -> Tensor:
        """B x T x D hidden states. `query` describes the columns of `x`, `key` those it may look at (the same,
        without a cache); `source` describes the memory's."""
        x_BTD = self.embed(x_BTD, query.positions_BT, token_types_BT)
        shared = self._shared(compute_dtype(x_BTD), query, key, memory_BSD, source, captured)
        residuals = captured.get("residuals")
        for index, block in enumerate(self.blocks):
            if residuals is not None:
                residuals.append(x_BTD)
            x_BTD = block(x_BTD, shared, None if cache is None else cache.layer(index))
        if residuals is not None:
            residuals.append(x_BTD)
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def _shared(
        self,
        dtype: torch.dtype,
        query: Places,
        key: Places,
        memory_BSD: Tensor | None,
        source: Places | None,
        captured: dict[str, list[Tensor]],
    ) -> Shared:
        learned = None if self.relative is None else self.relative(distances(query, key))
        needs = Needs(self.scores, self.attention_dropout and self.training, self.head_dim)
        return Shared(
            masks=self_masks(query, key, self.causal, self.windows, learned, dtype, needs),
            cross_mask=AttentionMask() if source is None else cross_mask(query, source, dtype, needs),
            tables=self._tables(query, dtype),
            memory_tables={} if source is None else self._tables(source, dtype),
            memory_BSD=memory_BSD,
            maps=captured.get("attention"),
            cross_maps=captured.get("cross_attention"),
            routers=captured.get("router"),
            choices=captured.get("experts"),
        )

    def _tables(self, places: Places, dtype: torch.dtype) -> dict[int | None, Tables]:
        return {number: rotary(places.positions_BT, dtype) for number, rotary in enumerate(self.rotaries)}
