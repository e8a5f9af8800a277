"""Memory that runs out while training: told from other errors, and met with smaller micro-batches.

    batches = in_parts(batches, health.parts)   # the same rows in more micro-batches: the same sums, the same loss

A step that runs out is done again from its start with the rows of every micro-batch cut in two, until it fits or they
have one row each. Losses and gradients are sums over rows divided once by the step's counts, so they are those of the
larger micro-batches up to rounding (1e-6 relative in fp32); dropout draws other numbers, and terms of `scope: micro`
count over fewer rows.
"""

from __future__ import annotations

import torch

from nalanda.data.batch import Batch
from nalanda.train.lanes import split

_SIGNS = ("can't allocate memory", "out of memory", "bad_alloc", "could not create a memory object")


class OutOfMemory(Exception):
    """A step's passes ran out of memory on some rank; nothing of them was kept."""


def is_shortage(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: Python's, the host allocator's of torch, oneDNN's or a GPU's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def one_line(error: BaseException) -> str:
    """What an allocator said, without its traces."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_parts(batches: list[Batch], parts: int) -> list[Batch]:
    """The micro-batches with the rows of each cut in `parts`, in their order; fewer where there are fewer rows."""
    return batches if parts == 1 else [part for batch in batches for part in split(batch, parts)]


def most_rows(batches: list[Batch]) -> int:
    """Rows of the largest micro-batch."""
    return max(batch["ids"].shape[0] for batch in batches)
