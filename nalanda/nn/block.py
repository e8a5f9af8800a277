"""One layer of a stack: sub-layers around the residual stream.

    pre    x + dropout(f(norm(x)))        norm_place 'pre':  trains without long warm-up
    post   norm(x + dropout(f(x)))        norm_place 'post': as in 2017 and BERT

x -> self-attention -> (cross-attention, where there is an encoder) -> feed-forward
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from nalanda.nn.attention import CrossAttention, SelfAttention
from nalanda.nn.cache import LayerCache
from nalanda.nn.dropout import Dropout
from nalanda.nn.feedforward import build_feedforward
from nalanda.nn.mask import AttentionMask
from nalanda.nn.norm import build_norm
from nalanda.nn.position import Tables
from nalanda.nn.spec import BlockSpec

SubLayer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shared:
    """What all blocks of a stack share in one forward."""

    masks: dict[int | None, AttentionMask]
    cross_mask: AttentionMask
    tables: Tables | None
    memory_tables: Tables | None
    memory_BSD: Tensor | None
    maps: list[Tensor] | None
    cross_maps: list[Tensor] | None


def pre(x_BTD: Tensor, norm: nn.Module, dropout: nn.Module, sublayer: SubLayer) -> Tensor:
    """The stream stays a plain sum; each sub-layer reads it normalized (Xiong et al. 2020)."""
    return x_BTD + dropout(sublayer(norm(x_BTD)))


def post(x_BTD: Tensor, norm: nn.Module, dropout: nn.Module, sublayer: SubLayer) -> Tensor:
    """The stream is normalized after each sub-layer (Vaswani et al. 2017)."""
    return norm(x_BTD + dropout(sublayer(x_BTD)))


PLACES: dict[str, Callable[[Tensor, nn.Module, nn.Module, SubLayer], Tensor]] = {"pre": pre, "post": post}


class Block(nn.Module):
    """One layer, as `spec` describes it."""

    def __init__(self, spec: BlockSpec, hidden: int) -> None:
        super().__init__()
        self.window = spec.attention.window
        self.residual = PLACES[spec.norm_place]
        self.dropout = Dropout(spec.dropout)
        self.attention_norm = build_norm(spec.norm, hidden)
        self.attention = SelfAttention(spec.attention, hidden)
        self.cross_norm = build_norm(spec.norm, hidden) if spec.cross is not None else None
        self.cross = CrossAttention(spec.cross, hidden) if spec.cross is not None else None
        self.feedforward_norm = build_norm(spec.norm, hidden)
        self.feedforward = build_feedforward(spec.feedforward, hidden)

    def forward(self, x_BTD: Tensor, shared: Shared, cache: LayerCache | None) -> Tensor:
        """B x T x D."""

        def attention(x: Tensor) -> Tensor:
            return self.attention(x, shared.masks[self.window], shared.tables, cache, shared.maps)

        x_BTD = self.residual(x_BTD, self.attention_norm, self.dropout, attention)
        if self.cross is not None and self.cross_norm is not None:
            cross = self.cross

            def from_source(x: Tensor) -> Tensor:
                return cross(
                    x,
                    shared.memory_BSD,
                    shared.cross_mask,
                    shared.tables,
                    shared.memory_tables,
                    cache,
                    shared.cross_maps,
                )

            x_BTD = self.residual(x_BTD, self.cross_norm, self.dropout, from_source)
        return self.residual(x_BTD, self.feedforward_norm, self.dropout, self.feedforward)
