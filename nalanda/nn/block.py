"""One layer of a stack: sub-layers around the residual stream.

    pre        x + f(norm(x))                 trains without long warm-up
    post       norm(x + f(x))                 as in 2017 and BERT
    sandwich   x + output_norm(f(norm(x)))    Gemma 2 and 3
    output     x + norm(f(x))                 OLMo 2

x -> self-attention -> (cross-attention, where there is an encoder) -> feed-forward; f ends in dropout.
With `first_mix` x is first replaced by a x + b x0, x0 being what the stack began with, a and b learned from 1 and 0:
late layers need not carry the tokens all the way up (modded-nanogpt, 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from nalanda.nn.attention import CrossAttention, SelfAttention
from nalanda.nn.cache import LayerCache
from nalanda.nn.dropout import Dropout
from nalanda.nn.feedforward import build_feedforward
from nalanda.nn.mask import AttentionMask
from nalanda.nn.moe import MoE
from nalanda.nn.norm import build_norm
from nalanda.nn.rotary import RotarySpec, Tables
from nalanda.nn.spec import AttentionSpec, BlockSpec, MoESpec

SubLayer = Callable[[Tensor], Tensor]
RotaryKey = tuple[RotarySpec, int]
"""A rotation and the dimension of the heads that it turns: attentions with the same one share its tables."""


@dataclass(frozen=True)
class Shared:
    """What all blocks of a stack share in one forward."""

    masks: dict[int | None, AttentionMask]
    cross_mask: AttentionMask
    tables: dict[int | None, Tables]  # of the stream's places, by the number of the rotary spec in the stack
    memory_tables: dict[int | None, Tables]
    memory_BSD: Tensor | None
    maps: list[Tensor] | None
    cross_maps: list[Tensor] | None
    routers: list[Tensor] | None
    choices: list[Tensor] | None
    first_BTD: Tensor | None = None  # what the stack began with, where a block mixes it in again
    token_values: dict[int, Tensor] = field(default_factory=dict)  # rows of the value tables, by number


def pre(x_BTD: Tensor, norm: nn.Module, output_norm: nn.Module, dropout: nn.Module, f: SubLayer) -> Tensor:
    """The stream stays a plain sum; each sub-layer reads it normalized (Xiong et al. 2020)."""
    return x_BTD + dropout(f(norm(x_BTD)))


def post(x_BTD: Tensor, norm: nn.Module, output_norm: nn.Module, dropout: nn.Module, f: SubLayer) -> Tensor:
    """The stream is normalized after each sub-layer (Vaswani et al. 2017)."""
    return norm(x_BTD + dropout(f(x_BTD)))


def sandwich(
    x_BTD: Tensor, norm: nn.Module, output_norm: nn.Module, dropout: nn.Module, f: SubLayer
) -> Tensor:
    """What a sub-layer reads is normalized and what it adds as well (Gemma 2, 2024)."""
    return x_BTD + dropout(output_norm(f(norm(x_BTD))))


def output(x_BTD: Tensor, norm: nn.Module, output_norm: nn.Module, dropout: nn.Module, f: SubLayer) -> Tensor:
    """Only what a sub-layer adds is normalized (OLMo 2, 2025)."""
    return x_BTD + dropout(norm(f(x_BTD)))


PLACES: dict[str, Callable[[Tensor, nn.Module, nn.Module, nn.Module, SubLayer], Tensor]] = {
    "pre": pre,
    "post": post,
    "sandwich": sandwich,
    "output": output,
}


class Block(nn.Module):
    """One layer, as `spec` describes it. `rotaries` are the stack's rotary specs, which it turns by number."""

    def __init__(self, spec: BlockSpec, hidden: int, rotaries: Sequence[RotaryKey]) -> None:
        super().__init__()
        self.window = spec.attention.window
        self.residual = PLACES[spec.norm_place]
        self.dropout = Dropout(spec.dropout)
        self.attention_norm = build_norm(spec.norm, hidden) if spec.attention_norm else nn.Identity()
        self.attention_output_norm = _output_norm(spec, hidden)
        self.attention = SelfAttention(spec.attention, hidden)
        self.rotary = _number(spec.attention, hidden, rotaries)
        self.cross: CrossAttention | None = None
        if spec.cross is not None:
            self.cross_norm = build_norm(spec.norm, hidden)
            self.cross_output_norm = _output_norm(spec, hidden)
            self.cross = CrossAttention(spec.cross, hidden)
            self.cross_rotary = _number(spec.cross, hidden, rotaries)
        self.feedforward_norm = build_norm(spec.norm, hidden)
        self.feedforward_output_norm = _output_norm(spec, hidden)
        self.feedforward: nn.Module
        if isinstance(spec.feedforward, MoESpec):
            self.feedforward = MoE(spec.feedforward, hidden)
        else:
            self.feedforward = build_feedforward(spec.feedforward, hidden)
        self.sparse = isinstance(spec.feedforward, MoESpec)
        self.first_mix = nn.Parameter(torch.tensor([1.0, 0.0])) if spec.first_mix else None
        self.value_table = spec.attention.value_table

    def forward(self, x_BTD: Tensor, shared: Shared, cache: LayerCache | None) -> Tensor:
        """B x T x D."""
        if self.first_mix is not None and shared.first_BTD is not None:
            stream, first = self.first_mix.to(x_BTD.dtype).unbind()
            x_BTD = stream * x_BTD + first * shared.first_BTD

        def attention(x: Tensor) -> Tensor:
            tables = shared.tables.get(self.rotary)
            values = None if self.value_table is None else shared.token_values[self.value_table]
            return self.attention(x, shared.masks[self.window], tables, cache, shared.maps, values)

        x_BTD = self.residual(x_BTD, self.attention_norm, self.attention_output_norm, self.dropout, attention)
        if self.cross is not None:
            cross = self.cross

            def from_source(x: Tensor) -> Tensor:
                return cross(
                    x,
                    shared.memory_BSD,
                    shared.cross_mask,
                    shared.tables.get(self.cross_rotary),
                    shared.memory_tables.get(self.cross_rotary),
                    cache,
                    shared.cross_maps,
                )

            x_BTD = self.residual(x_BTD, self.cross_norm, self.cross_output_norm, self.dropout, from_source)
        feedforward: SubLayer = self.feedforward
        if self.sparse:
            feedforward = partial(self.feedforward, routers=shared.routers, choices=shared.choices)
        return self.residual(
            x_BTD, self.feedforward_norm, self.feedforward_output_norm, self.dropout, feedforward
        )


def _output_norm(spec: BlockSpec, hidden: int) -> nn.Module:
    return build_norm(spec.norm, hidden) if spec.norm_place == "sandwich" else nn.Identity()


def _number(spec: AttentionSpec, hidden: int, rotaries: Sequence[RotaryKey]) -> int | None:
    return None if spec.rotary is None else rotaries.index((spec.rotary, spec.dim(hidden)))
