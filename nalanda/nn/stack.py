"""A stack of blocks with what they share: positions, masks, rotary tables, relative bias, the norm at the end, and
tables of token vectors for the attentions' values.

token vectors -> embed -> block 0 ... block L-1 -> norm -> hidden states
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nalanda.nn.block import Block, Shared
from nalanda.nn.cache import Cache
from nalanda.nn.embed import Embed
from nalanda.nn.initialize import initialize
from nalanda.nn.linear import Linear
from nalanda.nn.mask import AttentionMask, Needs, Places, cross_mask, distances, self_masks
from nalanda.nn.norm import build_norm
from nalanda.nn.position import RelativeBias
from nalanda.nn.rotary import Rotary, Tables
from nalanda.nn.spec import BlockSpec, PositionSpec, Spec

_SPREAD = 1_000_003
"""A prime larger than vocabularies: pairs of near numbers land far apart."""
CAPTURES = ("residuals", "attention", "cross_attention", "router", "experts")


class Memory(NamedTuple):
    """The encoder's output. `segments_BS` None: one document per row and no padding."""

    states_BSD: Tensor
    segments_BS: Tensor | None
    positions_BS: Tensor


class Tokens(NamedTuple):
    """The stream's ids; before each the one of its document that comes before, -1 where there is none here; and that
    one's vector, 0 where there is none, for stacks that mix it in."""

    ids_BT: Tensor
    previous_BT: Tensor
    before_BTD: Tensor | None = None


def pairs(tokens: Tokens, rows: int) -> Tensor:
    """B x T rows of a table of `rows`, one for each pair of tokens; where pairs are more, some share a row."""
    return (tokens.previous_BT.long() * _SPREAD + tokens.ids_BT.long()) % rows


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
        self.first_mix = any(block.first_mix for block in blocks)
        widths = {
            block.attention.value_table: block.attention.groups * block.attention.dim(spec.hidden)
            for block in blocks
        }
        self.value_tables = nn.ModuleDict(
            {str(n): nn.Embedding(spec.vocabulary, width) for n, width in widths.items() if n is not None}
        )
        width = spec.bigram_width or spec.hidden
        self.bigrams = nn.Embedding(spec.bigrams, width) if spec.bigrams else None
        self.bigram_output = Linear(width, spec.hidden) if spec.bigram_width else None
        self.previous_mix = nn.Parameter(torch.zeros(spec.hidden)) if spec.previous_mix else None
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
        tokens: Tokens | None = None,
    ) -> Tensor:
        """B x T x D hidden states. `query` describes the columns of `x`, `key` those it may look at (the same,
        without a cache); `source` describes the memory's. `tokens` are needed where the stack has tables of its own
        for them; without ids, as `inputs_embeds` are, that is a ValueError."""
        values: dict[int, Tensor] = {}
        if self.reads_tokens:
            if tokens is None:
                raise ValueError("value embeddings and bigrams are looked up by token: give ids, not vectors")
            values = {int(number): table(tokens.ids_BT) for number, table in self.value_tables.items()}
            if self.previous_mix is not None and tokens.before_BTD is not None:
                x_BTD = x_BTD + self.previous_mix * tokens.before_BTD
            if self.bigrams is not None:
                rows = self.bigrams(pairs(tokens, self.bigrams.num_embeddings))
                x_BTD = x_BTD + (rows if self.bigram_output is None else self.bigram_output(rows))
        x_BTD = self.embed(x_BTD, query.positions_BT, token_types_BT)
        shared = self._shared(compute_dtype(x_BTD), query, key, memory_BSD, source, captured)
        if values or self.first_mix:
            shared = replace(shared, first_BTD=x_BTD, token_values=values)
        residuals = captured.get("residuals")
        for index, block in enumerate(self.blocks):
            if residuals is not None:
                residuals.append(x_BTD)
            x_BTD = block(x_BTD, shared, None if cache is None else cache.layer(index))
        if residuals is not None:
            residuals.append(x_BTD)
        return x_BTD if self.norm is None else self.norm(x_BTD)

    @property
    def reads_tokens(self) -> bool:
        """Whether more is made of the tokens than their embeddings."""
        return len(self.value_tables) > 0 or self.bigrams is not None or self.previous_mix is not None

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
