"""Context parallel: ranks share the places of each row, for texts too long for one.

Rank c of C holds columns [c T/C, (c+1) T/C). All that a place does by itself needs no other rank; for attention, keys
and values are gathered from all of them (Llama 3, 2024, does the same). Seen from a rank this is a cache: its own
columns are the last of those it looks at, so masks come out as in decoding, and the network knows nothing of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nalanda.base.errors import UserError
from nalanda.data.batch import Batch, tensors
from nalanda.nn.mask import Places
from nalanda.train.parallel_exchange import gathered


class Context:
    """This rank's columns of each batch, and what its attentions look at."""

    def __init__(self, model: Any, index: int, count: int, group: Any) -> None:
        """Raises UserError for a network whose places see one another otherwise than by self-attention."""
        self.index, self.count, self.group = index, count, group
        self._whole: Batch | None = None
        stacks = [
            module for name, module in model.transformer.named_children() if name in ("encoder", "decoder")
        ]
        if len(stacks) != 1:
            raise UserError("parallel.context: is for models with one stack; an encoder-decoder has two")
        if any(rotary.by_length for rotary in stacks[0].rotaries):
            raise UserError(
                "parallel.context: rotations that grow with a text's length need it whole; set it to 1"
            )
        self.causal = bool(stacks[0].causal)
        model.forward = self._looking(model.forward)

    def _looking(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(batch: Any, **more: Any) -> Any:
            if self._whole is None:
                return forward(batch, **more)
            return forward(batch, **{**more, "cache": _Around(self, self._whole)})

        return call

    def own(self, batch: Batch) -> Batch:
        """This rank's columns. Raises UserError for batches that say something of whole rows."""
        row_keys = [key for key in ("labels", "prefix") if key in batch]
        if row_keys:
            raise UserError(f"parallel.context: batches with '{row_keys[0]}' need whole rows; set it to 1")
        width = batch["ids"].shape[1]
        more = -width % self.count
        low, high = (
            self.index * (width + more) // self.count,
            (self.index + 1) * (width + more) // self.count,
        )
        padded = {
            key: value if value.ndim < 2 else F.pad(value, (0, more)) if more else value
            for key, value in tensors(batch)
        }
        self._whole = Batch(**padded)  # type: ignore[typeddict-item]
        cut = {key: value if value.ndim < 2 else value[:, low:high] for key, value in padded.items()}
        return Batch(**cut)  # type: ignore[typeddict-item]

    @contextmanager
    def around(self) -> Iterator[None]:
        """Inside, after `own`, the model takes what it is given for this rank's columns; outside, for whole rows."""
        try:
            yield
        finally:
            self._whole = None


class _Around:
    """What the network takes for a cache: all that this rank's columns may look at."""

    def __init__(self, context: Context, whole: Batch) -> None:
        self.context, self.whole = context, whole
        self.source: Any = None
        self.cross: Any = None
        width = whole["ids"].shape[1]
        self.low = context.index * width // context.count
        self.own_end = (context.index + 1) * width // context.count
        self.end = self.own_end if context.causal else width

    def layer(self, index: int) -> _Around:
        """Blocks differ in nothing here."""
        return self

    def extend(self, *given: Any) -> tuple[Any, Any]:
        """Of a stack: its places and those that it looks at. Of a block: keys and values of those."""
        if len(given) == 2:
            keys_BGTK, values_BGTK = given
            both = gathered(torch.stack([keys_BGTK, values_BGTK]), self.context.group, 3)
            keys, values = both[:, :, :, : self.end].unbind(0)
            return keys, values
        device = given[-1]
        segments, positions = self.whole["segments"].to(device), self.whole["positions"].to(device)
        query = Places(segments[:, self.low : self.own_end], positions[:, self.low : self.own_end])
        return query, Places(segments[:, : self.end], positions[:, : self.end])

    def follow(self, ids_BT: Tensor, before_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """The tokens before, with that of the first column from the rank before."""
        if self.low == 0:
            return before_BT
        segments = self.whole["segments"][:, self.low - 1 : self.low + 1].to(ids_BT.device)
        last = self.whole["ids"][:, self.low - 1].to(ids_BT.device)
        first = torch.where(segments[:, 0] == segments[:, 1], last, -1)
        return torch.cat([first[:, None], before_BT[:, 1:]], 1)
