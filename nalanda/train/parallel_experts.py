"""Expert parallel: each rank owns some of every mixture's experts, and rows travel to the owner of theirs and back.

    rows of this rank, sorted by expert -> to their owners -> sorted by own expert -> experts -> back, in that order

(GShard, Lepikhin et al. 2021; without dropping any row.) Expert ranks compute different micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nalanda.base.errors import UserError
from nalanda.nn.moe import Experts, MoE
from nalanda.train.parallel_exchange import sent
from nalanda.train.parallel_tensor import Take, even


def own(model: nn.Module, count: int, group: Any, take: Take) -> list[Experts]:
    """Leaves this rank its experts of every mixture, and lets rows travel. Returns them.

    Raises UserError where there is no mixture, or `count` does not divide its experts.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, MoE):
            experts = module.spec.experts
            if experts % count:
                raise UserError(
                    f"parallel.expert: {count} does not divide the {experts} experts of {name}; "
                    "choose a size that does"
                )
            for weight in module.experts.parameters():
                take(weight, 0, even((experts,), count))
            module.experts.forward = _travelling(module.experts.forward, count, group)  # type: ignore[method-assign]
            found.append(module.experts)
    if not found:
        raise UserError("parallel.expert: this model has no mixture of experts; set it to 1")
    return found


def _travelling(forward: Callable[..., Tensor], count: int, group: Any) -> Callable[..., Tensor]:
    def travel(x_RD: Tensor, counts_E: Tensor) -> Tensor:
        give = counts_E.view(count, -1)  # to each rank, for each of its experts
        take = torch.empty_like(give)
        dist.all_to_all_single(take, give.contiguous(), group=group)
        sizes = give.sum(1).tolist(), take.sum(1).tolist()
        arrived = sent(x_RD, group, *sizes)
        expert = (
            torch.arange(give.shape[1], device=take.device).repeat(count).repeat_interleave(take.flatten())
        )
        order = expert.argsort(stable=True)
        y = forward(arrived.index_select(0, order), take.sum(0))
        return sent(y.index_select(0, order.argsort()), group, sizes[1], sizes[0])

    return travel
