"""Exchanges among ranks that gradients go through: what moves forward one way moves backward the other.

shared(x, group)        as it is;  backward: summed over the group      (a copy that each rank uses a part of)
summed(x, group)        summed;    backward: as it is                   (parts of a product's sum)
gathered(x, group, 0)   the group's tensors one after the other; backward: each its own slice of the sum
sent(x, group, ...)     rows to their owners; backward: back again
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _total(gradients[0], ctx.group), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _total(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, axis: int) -> Tensor:
        ctx.group, ctx.axis = group, axis
        everyone = [
            torch.empty_like(x, memory_format=torch.contiguous_format)
            for _ in range(dist.get_world_size(group))
        ]
        dist.all_gather(everyone, x.contiguous(), group=group)
        return torch.cat(everyone, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        size, rank = dist.get_world_size(ctx.group), dist.get_rank(ctx.group)
        return _total(gradients[0], ctx.group).chunk(size, ctx.axis)[rank].contiguous(), None, None


class _Sent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, give: Sequence[int], take: Sequence[int]) -> Tensor:
        ctx.group, ctx.give, ctx.take = group, give, take
        return _rows(x, group, give, take)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _rows(gradients[0], ctx.group, ctx.take, ctx.give), None, None, None


def _total(x: Tensor, group: Any) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _rows(x: Tensor, group: Any, give: Sequence[int], take: Sequence[int]) -> Tensor:
    out = x.new_empty(sum(take), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), list(take), list(give), group=group)
    return out


def shared(x: Tensor, group: Any) -> Tensor:
    """`x`, of which each rank of the group uses a part: its gradient is the sum of theirs."""
    return _Shared.apply(x, group)


def summed(x: Tensor, group: Any) -> Tensor:
    """The sum of the group's tensors, which all ranks then use alike."""
    return _Summed.apply(x, group)


def gathered(x: Tensor, group: Any, axis: int) -> Tensor:
    """The group's tensors, all of one shape, one after the other along `axis`."""
    return _Gathered.apply(x, group, axis)


def sent(x: Tensor, group: Any, give: Sequence[int], take: Sequence[int]) -> Tensor:
    """The first `give[0]` rows go to rank 0 of the group, and so on; `take[i]` rows come from rank i, in order."""
    return _Sent.apply(x, group, give, take)
