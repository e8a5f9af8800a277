"""How the gradients of a step's parts become one: on this rank, and among the ranks.

    gradients = team.gradients(weights)
    for part in parts:
        ...backward...
        gradients.add()                      # after each part's backward pass
    gradients.finish(unseen)                 # now every weight's `.grad` is the whole step's

plain   one process: autograd adds to `.grad`
summed  each rank adds as above, then all sums are added over the ranks (all-reduce)
tree    micro-batch i is leaf i of a binary tree, and every sum is (left half) + (right half): a binary counter here,
        recursive doubling among ranks, whose shares are whole subtrees. Floats are then added in the same order
        whatever the number of ranks:

            slots    0   1   2   3   4   5   -   -      P = 8, the next power of two; empty ones add nothing
                      \\ /     \\ /     \\ /
                       +       +       +
            2 ranks:   `---+---'       |
                           `-----+-----'               the last addition is that of ranks 0 and 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nalanda.base.distributed import Ranks
from nalanda.train.parallel_layout import local_of

_BUCKET = 2**24  # numbers that travel at once: 64 MiB in fp32


class Gradients:
    """How gradients add up. The base class adds nothing up: autograd has done it in `.grad`."""

    def add(self) -> None:
        """Takes in the backward pass that was just made."""

    def unseen(self) -> list[int]:
        """Numbers of the weights that no part of this rank touched."""
        return []

    def finish(self, unseen: list[list[int]]) -> None:
        """Leaves the step's gradient in `.grad`; `unseen` is what each rank's `unseen` gave."""


class Plain(Gradients):
    """One process."""


class _Shared(Gradients):
    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = weights
        self._seen = [False] * len(weights)

    def _note(self) -> None:
        for index, weight in enumerate(self.weights):
            self._seen[index] = self._seen[index] or weight.grad is not None

    def unseen(self) -> list[int]:
        """Numbers of the weights without a gradient."""
        return [index for index, seen in enumerate(self._seen) if not seen]

    def _touched(self, unseen: list[list[int]]) -> list[nn.Parameter]:
        nobody = set(unseen[0]).intersection(*unseen[1:]) if unseen else set()
        return [weight for index, weight in enumerate(self.weights) if index not in nobody]


class Summed(_Shared):
    """Added up by autograd on each rank, then over groups of ranks."""

    def __init__(
        self, weights: Sequence[nn.Parameter], groups: Sequence[tuple[list[nn.Parameter], Any]]
    ) -> None:
        """`groups`: weights, and the process group over which their gradients are added (None: all ranks)."""
        super().__init__(weights)
        self.groups = groups

    def add(self) -> None:
        """Notes which weights have a gradient."""
        self._note()

    def finish(self, unseen: list[list[int]]) -> None:
        """Adds over the ranks, in buckets."""
        import torch.distributed as dist

        touched = {id(weight) for weight in self._touched(unseen)}
        for weights, group in self.groups:
            gradients = []
            for weight in weights:
                if id(weight) in touched:
                    weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                    gradients.append(local_of(weight.grad))
            if dist.get_world_size(group) > 1:
                in_buckets(gradients, partial(dist.all_reduce, group=group))


class Tree(_Shared):
    """Added up in the fixed tree; needs a power of two of ranks, each with a contiguous share of the slots."""

    def __init__(self, weights: Sequence[nn.Parameter], ranks: Ranks, has: Sequence[bool]) -> None:
        """`has`: whether each rank has a leaf."""
        super().__init__(weights)
        self.ranks, self.has = ranks, has
        self._sums: list[tuple[int, list[Tensor]]] = []  # (level, sums), the levels falling

    def add(self) -> None:
        """Carries the new leaf up as a binary counter does; the earlier part is always the left operand."""
        self._note()
        level, sums = 0, [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        for weight in self.weights:
            weight.grad = None
        while self._sums and self._sums[-1][0] == level:
            sums = _added(self._sums.pop()[1], sums)
            level += 1
        self._sums.append((level, sums))

    def finish(self, unseen: list[list[int]]) -> None:
        """Adds what is left here, then what the ranks have."""
        sums: list[Tensor] | None = None
        while self._sums:
            left = self._sums.pop()[1]
            sums = left if sums is None else _added(left, sums)
        if self.ranks.size > 1:
            sums = self._among_ranks(sums)
        touched = {id(weight) for weight in self._touched(unseen)}
        for weight, value in zip(self.weights, sums or []):
            weight.grad = value if id(weight) in touched else None

    def _among_ranks(self, sums: list[Tensor] | None) -> list[Tensor] | None:
        """Recursive doubling: after round d, every rank of a block of 2d ranks has the block's sum."""
        rank, distance = self.ranks.rank, 1
        while distance < self.ranks.size:
            partner = rank ^ distance
            mine, theirs = (any(self.has[i] for i in _block(r, distance)) for r in (rank, partner))
            if theirs and sums is None:
                sums = [torch.empty_like(w) for w in self.weights]
                _swap(sums, partner, send=False)
            elif sums is not None and not theirs:
                _swap(sums, partner, receive=not mine)
            elif sums is not None:
                other = [value.clone() for value in sums]
                _swap(other, partner)
                sums = _added(sums, other) if rank < partner else _added(other, sums)
            distance *= 2
        return sums


def _block(rank: int, size: int) -> range:
    start = rank // size * size
    return range(start, start + size)


def _added(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(left, right)
    return left


def _swap(tensors: list[Tensor], partner: int, send: bool = True, receive: bool = True) -> None:
    """Replaces `tensors` by the partner's, by buckets; with one direction alone, sends or receives."""
    import torch.distributed as dist

    def move(flat: Tensor) -> None:
        sent = flat.clone() if send and receive else flat
        work = [dist.P2POp(dist.isend, sent, partner)] if send else []
        work += [dist.P2POp(dist.irecv, flat, partner)] if receive else []
        for request in dist.batch_isend_irecv(work):
            request.wait()

    in_buckets(tensors, move)


def in_buckets(tensors: Sequence[Tensor], change: Callable[[Tensor], Any]) -> None:
    """Applies `change`, which works in place on a flat tensor, to all tensors, several small ones at once."""
    for bucket in _buckets(tensors):
        flat = torch.cat([value.reshape(-1) for value in bucket])
        change(flat)
        parts = flat.split([value.numel() for value in bucket])
        torch._foreach_copy_(list(bucket), [part.view_as(value) for part, value in zip(parts, bucket)])


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for value in tensors:
        if bucket and (
            value.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + value.numel() > _BUCKET
        ):
            yield bucket
            bucket = []
        bucket.append(value)
    if bucket:
        yield bucket
