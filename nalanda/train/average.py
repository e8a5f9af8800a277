"""A running mean of the weights, which evaluates and exports better than the last weights (Polyak averaging).

average = Average(EmaConfig(decay=0.999), model)
average.update()                    # after each optimizer step
with average.used(): evaluate(...)  # the model holds the mean inside
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from nalanda.config import Config


class EmaConfig(Config):
    """decay: share of the mean that a step keeps; early steps keep less, (1 + t) / (10 + t), to forget the start."""

    decay: float = Field(default=0.999, gt=0, lt=1)


class Average:
    """The exponential mean of a model's trainable weights, in fp32."""

    def __init__(self, config: EmaConfig, model: nn.Module) -> None:
        self.decay = config.decay
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.mean = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Moves the mean towards the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.mean.values()), list(self.weights.values()), 1 - decay)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the model holds the mean."""
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.adopt()
        try:
            yield
        finally:
            self._set(kept)

    def adopt(self) -> None:
        """Writes the mean into the model for good."""
        self._set(self.mean)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {**self.mean, "/updates": torch.tensor(self.updates)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `state` gave."""
        self.updates = int(tensors["/updates"])
        with torch.no_grad():
            for name, mean in self.mean.items():
                mean.copy_(tensors[name])
