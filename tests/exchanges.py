"""The exchanges of train/parallel_exchange.py against finite differences, for tests on several processes.

errors = together(2, exchange_errors)[0]        # name -> largest relative error of a gradient, float64
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from nalanda.train.parallel_exchange import gathered, sent, shared, summed

STEP = 1e-6


def exchange_errors() -> dict[str, float]:
    """What this rank finds: of a copy that all share, of a sum, of what is put together, of rows that are sent."""
    rank, size = dist.get_rank(), dist.get_world_size()
    draw = torch.Generator().manual_seed(5)
    everyone = torch.randn(size, size, 3, generator=draw, dtype=torch.float64)
    mine, alike = torch.randn(size, 40, generator=draw, dtype=torch.float64)[rank], everyone[0]
    give = [size - 1] + [1] * (size - 2) + [0] if size > 2 else [[2, 0], [1, 1]][rank]
    table = [None] * size
    dist.all_gather_object(table, give)
    take = [row[rank] for row in table if row is not None]

    def weighed(value: Tensor) -> Tensor:
        return (value.flatten() * mine[: value.numel()]).sum()

    def same(value: Tensor) -> Tensor:
        return (value.flatten() * torch.arange(1, value.numel() + 1, dtype=value.dtype)).sum()

    return {
        "_Shared": _error(alike, lambda x: weighed(shared(x, None).square()), replicated=True),
        "_Summed": _error(everyone[rank], lambda x: same(summed(x, None).square()), counted=rank == 0),
        "_Gathered": _error(everyone[rank], lambda x: weighed(gathered(x, None, 1).square())),
        "_Sent": _error(everyone[rank], lambda x: weighed(sent(x, None, give, take).square())),
    }


def _error(
    start: Tensor, loss: Callable[[Tensor], Tensor], replicated: bool = False, counted: bool = True
) -> float:
    """The largest difference between the gradient on this rank and central differences of the sum of all ranks'
    losses, over the largest slope. `replicated`: every rank has the same input, and it moves on all at once;
    `counted`: whether this rank's loss is in the sum (all have the same one where it is not)."""
    x = start.clone().requires_grad_()
    loss(x).backward()
    assert x.grad is not None

    def total(value: Tensor) -> float:
        found = loss(value).detach() * counted
        dist.all_reduce(found)
        return float(found)

    rank, slopes = dist.get_rank(), torch.zeros_like(start).flatten()
    for owner in range(1 if replicated else dist.get_world_size()):
        for place in range(start.numel()):
            moved = torch.zeros(start.numel(), dtype=start.dtype)
            if replicated or owner == rank:
                moved[place] = STEP
            slope = (total(start + moved.view_as(start)) - total(start - moved.view_as(start))) / (2 * STEP)
            if replicated or owner == rank:
                slopes[place] = slope
    return float((x.grad.flatten() - slopes).abs().max() / slopes.abs().max())
