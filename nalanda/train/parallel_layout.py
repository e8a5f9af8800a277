"""Which part of each weight a rank holds, as data: what saving, norms, whole matrices and resharding go by.

    layout = Layout(shape=(96, 32), axis=0, parts=(((0, 16), (32, 40)), ((16, 32), (40, 48))), index=1, group=group)
    local = layout.own(whole)          # rank 1's rows 16..32 and 40..48, one under the other
    whole = layout.whole(local)        # all ranks of the group together

A weight may be cut twice: along `axis` among tensor or expert ranks (a fused weight in several ranges, one for each
matrix in it), and what is left along its rows among the ranks of FSDP2, as a DTensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

Range = tuple[int, int]
Box = tuple[tuple[Range, ...], tuple[Range, ...]]
"""(where in the rank's own tensor, where in the whole weight): a range for each axis."""


@dataclass(frozen=True)
class Layout:
    """One weight. `parts`: the ranges of `axis` that each rank of `group` holds; `index`: this rank's place in it.

    `mesh`: the ranks of FSDP2 among which rows are shared out, None where all hold them. `copies`: whether this rank
    holds what a rank before it holds too.
    """

    shape: tuple[int, ...]
    axis: int = 0
    parts: tuple[tuple[Range, ...], ...] = ()
    index: int = 0
    group: Any = None
    mesh: Any = None
    copies: bool = False

    @property
    def cut_shape(self) -> tuple[int, ...]:
        """The shape before rows are shared out."""
        if not self.parts:
            return self.shape
        width = sum(stop - start for start, stop in self.parts[self.index])
        return (*self.shape[: self.axis], width, *self.shape[self.axis + 1 :])

    def own(self, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor of the weight's shape: a DTensor under FSDP2."""
        if self.parts:
            whole = torch.cat(
                [whole.narrow(self.axis, a, b - a) for a, b in self.parts[self.index]], self.axis
            )
        if self.mesh is None:
            return whole
        low, high = self._rows()
        whole = whole.to(self.mesh.device_type)
        return DTensor.from_local(
            whole[low:high].contiguous(),
            self.mesh,
            [Shard(0)],
            run_check=False,
            shape=whole.shape,
            stride=whole.contiguous().stride(),
        )

    def whole(self, local: Tensor) -> Tensor:
        """The whole tensor from every rank's part; a call that all of them make."""
        if isinstance(local, DTensor):
            local = local.full_tensor()
        if not self.parts:
            return local
        import torch.distributed as dist

        everyone = [torch.empty_like(local) for _ in self.parts]
        dist.all_gather(everyone, local.contiguous(), group=self.group)
        whole = local.new_empty(self.shape)
        for ranges, part in zip(self.parts, everyone, strict=True):
            at = 0
            for start, stop in ranges:
                whole.narrow(self.axis, start, stop - start).copy_(part.narrow(self.axis, at, stop - start))
                at += stop - start
        return whole

    def boxes(self) -> Iterator[Box]:
        """Where this rank's part lies, in boxes."""
        shape = self.cut_shape
        if not shape:
            yield (), ()
            return
        low, high = (0, shape[0]) if self.mesh is None else self._rows()
        if high <= low:
            return
        rows = (0, high - low), (low, high)
        others = [(0, size) for size in shape]
        at = 0
        for start, stop in self.parts[self.index] if self.parts else ((0, shape[self.axis]),):
            here, there = list(others), list(others)
            here[0], there[0] = rows
            if self.axis:
                here[self.axis], there[self.axis] = (at, at + stop - start), (start, stop)
            else:  # the same axis is cut twice
                first, last = max(low, at), min(high, at + stop - start)
                here[0], there[0] = (first - low, last - low), (start + first - at, start + last - at)
            at += stop - start
            if here[0][1] > here[0][0]:
                yield tuple(here), tuple(there)

    def _rows(self) -> Range:
        """As DTensor's Shard(0) deals them out: equal pieces, the last ones smaller or empty."""
        count, size = self.cut_shape[0], self.mesh.size()
        each = -(-count // size)
        return min(self.mesh.get_local_rank() * each, count), min(
            (self.mesh.get_local_rank() + 1) * each, count
        )


def local_of(value: Tensor) -> Tensor:
    """The numbers that lie on this rank."""
    return value.to_local() if isinstance(value, DTensor) else value


class Layouts:
    """The layouts of a model's weights, and of all that is shaped like them: moments, averages, best weights."""

    def __init__(self, by_name: Mapping[str, Layout]) -> None:
        self.by_name = dict(by_name)

    def of(self, key: str, value: Tensor | None = None) -> Layout | None:
        """The layout of what is kept under `key`, in which a weight's name is one of the parts between slashes.

        None for what is no part of a weight; with `value`, also for what has another shape (a counter).
        """
        found = next((self.by_name[part] for part in key.split("/") if part in self.by_name), None)
        if found is None or (value is not None and tuple(value.shape) != found.cut_shape):
            return None
        return found

    def own(self, key: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor that is kept under `key`."""
        layout = self.of(key)
        return whole if layout is None or tuple(whole.shape) != layout.shape else layout.own(whole)

    def shapes(self, tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """Whole shapes by name."""
        return {
            name: list(value.shape if (layout := self.of(name, value)) is None else layout.shape)
            for name, value in tensors.items()
        }

    def squares(self, named: Mapping[str, nn.Parameter]) -> float:
        """The sum of squares of the gradients that are this rank's to count: over all ranks, each number once."""
        mine = [
            local_of(weight.grad)
            for name, weight in named.items()
            if weight.grad is not None and not self.by_name[name].copies
        ]
        mine = [value.float() for value in mine if value.numel()]
        return float(torch.stack(list(torch._foreach_norm(mine))).double().square().sum()) if mine else 0.0
