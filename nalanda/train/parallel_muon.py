"""Muon on weights that ranks hold in parts: an orthogonal update needs the whole matrix.

    spread(optimizer, arrangement)       # from then on its Muon gathers each update, and keeps its own part of it

Momentum and weight decay work on parts. The update's parts are gathered from the ranks, some matrices at a time,
every rank orthogonalizes them as one process would, and adds its own part to its weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nalanda.train.muon import Muon
from nalanda.train.optimizer import Optimizer, fused_rows
from nalanda.train.parallel_layout import Layout, local_of
from nalanda.train.parallel_model import Arrangement

_AT_ONCE = 2**26  # numbers of whole matrices that are held together


def spread(optimizer: Optimizer, arrangement: Arrangement) -> None:
    """Lets every Muon of `optimizer` update weights of which this rank holds a part."""
    rows = fused_rows(arrangement.skeleton)
    known = {
        id(weight): (arrangement.layouts.by_name[name], rows.get(name, ()))
        for name, weight in optimizer.named.items()
    }
    for part in optimizer.parts:
        if isinstance(part, Muon):
            _spread(part, known)


def _spread(muon: Muon, known: dict[int, tuple[Layout, tuple[int, ...]]]) -> None:
    apply = muon._apply

    def gathered(weights: list[Tensor], updates: list[Tensor], lr: float, decay: float) -> None:
        while weights:
            count, numbers = 0, 0
            while count < len(weights) and (count == 0 or numbers < _AT_ONCE):
                numbers += int(torch.Size(known[id(weights[count])][0].shape).numel())
                count += 1
            some(weights[:count], updates[:count], lr, decay)
            weights, updates = weights[count:], updates[count:]

    def some(weights: list[Tensor], updates: list[Tensor], lr: float, decay: float) -> None:
        layouts = [known[id(weight)] for weight in weights]
        whole = [layout.whole(update) for (layout, _), update in zip(layouts, updates, strict=True)]
        # Cautious decay looks at the weights themselves; otherwise what is added to zeros is the change.
        new = [
            layout.whole(weight).clone() if decay else torch.zeros_like(update)
            for (layout, _), weight, update in zip(layouts, weights, whole, strict=True)
        ]
        for value, weight, (_, rows) in zip(new, weights, layouts, strict=True):
            muon._parts[id(value)] = rows or (value.shape[-2],)
            muon.state[value] = muon.state[weight]  # rows' running squares are kept whole, on every rank
        apply(new, whole, lr, decay)
        for weight, value, (layout, _) in zip(weights, new, layouts, strict=True):
            del muon._parts[id(value)], muon.state[value]
            local, own = local_of(weight), local_of(layout.own(value))
            local.copy_(own) if decay else local.add_(own)

    replaced: Any = gathered
    muon._apply = replaced  # type: ignore[method-assign]
