"""Tensor parallel: ranks share the heads, the inner features and the vocabulary (Shoeybi et al. 2019, Megatron-LM).

                 x (all ranks alike)
        shared     |  backward: summed
    qkv, input, gate_up    rows cut: each rank its heads or inner features
                   |
               output      columns cut: each rank a part of the sum
        summed     |
                 x (alike again)

Embeddings are cut by rows of the vocabulary: a rank adds the vectors of its own tokens. For the loss the ranks share
the trained places instead: each takes its part of them through the whole head, whose matrix is gathered for that, so
that no objective knows of ranks. What is left whole sees the same numbers on every rank; weights of which a rank sees
a part of the heads or places (`partial`) have their gradients summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nalanda.base.errors import UserError
from nalanda.nn.attention import CrossAttention, SelfAttention
from nalanda.nn.feedforward import GLU, MLP
from nalanda.nn.heads import LanguageModelHead
from nalanda.nn.moe import MoE
from nalanda.nn.stack import Stack
from nalanda.train.parallel_exchange import gathered, shared, summed
from nalanda.train.parallel_layout import Range

Parts = tuple[tuple[Range, ...], ...]
Take = Callable[[Tensor, int, Parts], None]
"""take(weight, axis, parts): cuts a weight in place."""


def even(sizes: tuple[int, ...], count: int) -> Parts:
    """Each of `count` ranks' ranges of an axis that holds several matrices of `sizes` rows, each cut evenly."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(
        tuple(
            (start + size * r // count, start + size * (r + 1) // count) for start, size in zip(starts, sizes)
        )
        for r in range(count)
    )


def cut(model: Any, index: int, count: int, group: Any, take: Take) -> list[nn.Parameter]:
    """Makes `model` rank `index`'s part of it; returns the weights whose gradients are partial.

    Raises UserError naming the first size that `count` does not divide.
    """
    partial_weights: list[nn.Parameter] = []
    skipped = {
        id(inner) for module in model.modules() if isinstance(module, MoE) for inner in module.modules()
    }
    for name, module in model.named_modules():
        if id(module) in skipped:  # a mixture is the same on all tensor ranks; expert ranks share it
            continue
        if isinstance(module, SelfAttention | CrossAttention):
            partial_weights += _attention(name, module, index, count, group, take)
        elif isinstance(module, MLP | GLU):
            partial_weights += _feedforward(name, module, index, count, group, take)
        elif isinstance(module, Stack):
            _stack(module, count, take)
        elif isinstance(module, LanguageModelHead):
            _head(module, model.transformer.tokens.weight, index, count, group, take)
    _embedding(model.transformer.tokens, index, count, group, take)
    partial_weights += [
        w for n, w in model.heads.named_parameters() if not n.endswith("tokens.output.weight")
    ]
    return partial_weights


def _divides(count: int, value: int, what: str) -> None:
    if value % count:
        raise UserError(
            f"parallel.tensor: {count} does not divide the {value} {what}; choose a size that does"
        )


def _attention(
    name: str, module: SelfAttention | CrossAttention, index: int, count: int, group: Any, take: Take
) -> Iterator[nn.Parameter]:
    heads, groups, dim = module.heads, module.groups, module.dim
    _divides(count, heads, f"heads of {name}")
    _divides(count, groups, f"key/value heads of {name}")
    if module.norm_over_all and module.query_norm is not None:
        raise UserError(
            f"parallel.tensor: {name} normalizes all its heads together, so they cannot be shared out"
        )
    own = heads // count, groups // count
    if isinstance(module, SelfAttention):
        _rows(module.qkv, (heads * dim, groups * dim, groups * dim), count, group, take)
        module.fused_rows = {"qkv.weight": (own[0] * dim, own[1] * dim, own[1] * dim)}
    else:
        _rows(module.query, (heads * dim,), count, group, take)
        _rows(module.key_value, (groups * dim, groups * dim), count, group, take)
        module.fused_rows = {"key_value.weight": (own[1] * dim, own[1] * dim)}
    _columns(module.output, heads * dim, index, count, group, take)
    module.heads, module.groups = own
    if module.sinks is not None:
        take(module.sinks, 0, even((heads,), count))
    for norm in (module.query_norm, module.key_norm):
        if norm is not None:
            yield from norm.parameters()
    mix = getattr(module, "value_mix", None)
    if mix is not None:
        yield mix
    if module.output.bias is not None:
        yield module.output.bias


def _feedforward(
    name: str, module: MLP | GLU, index: int, count: int, group: Any, take: Take
) -> Iterator[nn.Parameter]:
    inner = module.output.in_features
    _divides(count, inner, f"inner features of {name}")
    if isinstance(module, GLU):
        _rows(module.gate_up, (inner, inner), count, group, take)
        module.fused_rows = {"gate_up.weight": (inner // count, inner // count)}
    else:
        _rows(module.input, (inner,), count, group, take)
    _columns(module.output, inner, index, count, group, take)
    if module.output.bias is not None:
        yield module.output.bias


def _rows(module: nn.Linear, sizes: tuple[int, ...], count: int, group: Any, take: Take) -> None:
    take(module.weight, 0, even(sizes, count))
    if module.bias is not None:
        take(module.bias, 0, even(sizes, count))
    forward = module.forward
    module.forward = lambda input: forward(shared(input, group))  # type: ignore[method-assign]


def _columns(module: nn.Linear, inputs: int, index: int, count: int, group: Any, take: Take) -> None:
    take(module.weight, 1, even((inputs,), count))
    forward = module.forward if index == 0 else partial(_without_bias, module)
    module.forward = lambda input: summed(forward(input), group)  # type: ignore[method-assign]


def _without_bias(module: nn.Linear, x: Tensor) -> Tensor:
    """The first rank alone adds the bias, so that the sum has it once."""
    return F.linear(x, module.weight)


def _stack(stack: Stack, count: int, take: Take) -> None:
    """Tables that give something to each head."""
    if stack.relative is not None:
        heads = stack.relative.table.embedding_dim
        take(stack.relative.table.weight, 1, even((heads,), count))
    for table in getattr(stack, "value_tables", {}).values():
        take(table.weight, 1, even((table.embedding_dim,), count))


def _embedding(tokens: nn.Embedding, index: int, count: int, group: Any, take: Take) -> None:
    rows = tokens.num_embeddings
    if rows % count:
        return  # each rank keeps all rows
    take(tokens.weight, 0, even((rows,), count))
    low, high = index * rows // count, (index + 1) * rows // count

    def forward(input: Tensor) -> Tensor:
        own = (input >= low) & (input < high)
        x = F.embedding(torch.where(own, input - low, 0), tokens.weight)
        return summed(x * own[..., None].to(x.dtype), group)

    tokens.forward = forward  # type: ignore[method-assign]


def _head(
    head: LanguageModelHead, tokens: nn.Parameter, index: int, count: int, group: Any, take: Take
) -> None:
    affine, rows = head.affine, head.output.out_features
    if head.output.weight is not tokens and rows % count == 0:
        take(head.output.weight, 0, even((rows,), count))

    def whole(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        features, weight, bias = affine(hidden)
        return features, shared(weight, group) if rows % count else gathered(weight, group, 0), bias

    head.affine = whole  # type: ignore[method-assign]


def places(weight: Tensor, index: int, count: int) -> Tensor:
    """`weight` with 0 at the places that other ranks take; the trained ones are dealt out in turn."""
    flat = weight.reshape(-1)
    number = (flat != 0).cumsum(0) - 1
    return torch.where(number % count == index, flat, 0).view_as(weight)
