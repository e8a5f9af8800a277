"""Named tensors on disk, read one at a time into their place, and written one at a time as their turn comes.

weights = open_weights(folder)                   # model.safetensors, or its shards by their index
weights.shape("embed.weight"); weights.read("embed.weight", out=parameter[:512])
write_weights(draft, [Entry("embed.weight", (512, 64), torch.bfloat16, make), ...])

Neither side ever holds more than one tensor beside the model itself. Nothing that runs code is read: PyTorch's
`.bin` files are pickles, and only `pickled=True` opens them, with torch's `weights_only` reader.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Weights(Protocol):
    """A checkpoint's tensors, by their names."""

    origin: Path  # file or folder, for messages

    def keys(self) -> Collection[str]:
        """The names of all tensors."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of what `read` gives."""
        ...

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of what `read` gives where no `out` is passed."""
        ...

    def read(self, key: str, out: Tensor | None = None) -> Tensor:
        """The tensor; with `out` (same shape, on the CPU, any dtype and strides) fills that and returns it.

        Raises RunError where the file no longer holds it or `out` has another shape.
        """
        ...

    def place(self, key: str) -> str:
        """Where `key` is, for messages: "FILE: weight 'KEY'"."""
        ...


@dataclass(frozen=True)
class Entry:
    """One tensor to be written; `make` gives it, with that shape and dtype, when its turn comes."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]
