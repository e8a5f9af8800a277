"""How many processes do what: the recipe's field `parallel`, checked against the number of processes.

sizes = sizes_of(ParallelConfig(tensor=2), world=8)        # Sizes(data=4, expert=1, context=1, tensor=2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from nalanda.base.errors import UserError
from nalanda.config import Config


class ParallelConfig(Config):
    """How many ranks do what; the product of the sizes is the number of processes."""

    data: int | None = Field(default=None, gt=0, description="None: what the number of processes leaves")
    tensor: int = Field(default=1, gt=0)
    context: int = Field(default=1, gt=0)
    expert: int = Field(default=1, gt=0)
    shard: bool = Field(
        default=False, description="FSDP2: each data rank keeps a share of weights and optimizer state"
    )
    checkpointing: Literal["none", "selective", "full"] = Field(
        default="none",
        description="activations worked out again in the backward pass: all, or all but products",
    )
    mode: Literal["fast", "deterministic"] = Field(
        default="fast",
        description="deterministic: the same bits whatever the number of data ranks; not with the others",
    )

    @model_validator(mode="after")
    def _deterministic_is_replicated(self) -> ParallelConfig:
        others = [name for name in ("tensor", "context", "expert") if getattr(self, name) > 1]
        others += ["shard"] if self.shard else []
        if self.mode == "deterministic" and others:
            raise ValueError(f"parallel.mode: deterministic is for data ranks alone; take out {others[0]}")
        if self.mode == "deterministic" and self.data is not None and self.data & (self.data - 1):
            raise ValueError(f"parallel.data: deterministic mode needs a power of two, not {self.data}")
        return self


@dataclass(frozen=True)
class Sizes:
    """The mesh of ranks: rank = ((data * E + expert) * C + context) * T + tensor."""

    data: int
    expert: int
    context: int
    tensor: int


def sizes_of(config: ParallelConfig, world: int) -> Sizes:
    """The sizes that `config` means for `world` processes. Raises UserError where they do not multiply to it."""
    rest = config.tensor * config.context * config.expert
    data = config.data if config.data is not None else world // rest
    if data * rest != world:
        named = (
            f"data {data or 1} x tensor {config.tensor} x context {config.context} x expert {config.expert}"
        )
        wanted = (data or 1) * rest
        raise UserError(
            f"parallel: {named} is {wanted} processes and this run has {world}; start it with "
            f"torchrun --nproc-per-node {wanted}, or change the sizes"
        )
    if config.mode == "deterministic" and data & (data - 1):
        raise UserError(f"parallel.mode: deterministic needs a power of two of ranks, not {data}")
    return Sizes(data, config.expert, config.context, config.tensor)
