"""How a model is trained: every setting of the loop.

config = LoopConfig(budget=BudgetConfig(steps=1000), optimizer=MuonConfig(lr=1e-3), precision="bf16")
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from nalanda.config import Config
from nalanda.train.average import EmaConfig
from nalanda.train.checkpoint import CheckpointConfig
from nalanda.train.compile import Mode
from nalanda.train.device import Device
from nalanda.train.health import HealthConfig
from nalanda.train.optimizer import AdamWConfig, OptimizerConfig
from nalanda.train.parallel_sizes import ParallelConfig
from nalanda.train.precision import Precision
from nalanda.train.schedule import BudgetConfig, ScheduleConfig

_HEALTH = HealthConfig()


class LoopConfig(Config):
    """How to train.

    clip: largest norm of the whole gradient, None for no limit. log_every: optimizer steps between rows of
    metrics.jsonl. compile: torch.compile; `auto` uses it for long runs. deterministic: only operations with a fixed
    order of additions. workers: threads that prepare batches, 0 for none. parallel: how several processes share the
    work, see train/parallel.py.
    """

    seed: int = 0
    budget: BudgetConfig
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Precision = "auto"
    clip: float | None = Field(default=1.0, gt=0)
    ema: EmaConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = Field(default=10, gt=0)
    compile: Mode = "auto"
    deterministic: bool = True
    workers: int = Field(default=1, ge=0)
    device: Device = Field(
        default="auto",
        exclude_if="auto".__eq__,
        description="auto (a GPU where there is one), cpu, cuda, cuda:1, mps",
    )
    parallel: ParallelConfig = ParallelConfig()
    health: HealthConfig = Field(
        default=_HEALTH, exclude_if=_HEALTH.__eq__, description="what is done about steps that go wrong"
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> LoopConfig:
        self.schedule.in_shares(self.budget)
        return self

    @model_validator(mode="after")
    def _rewinds_have_checkpoints(self) -> LoopConfig:
        if problem := self.health.problem(self.checkpoint.every, self.checkpoint.keep):
            raise ValueError(problem)
        return self

    def identity(self) -> dict[str, Any]:
        """The loop's own fields that decide the weights: a checkpoint of others does not belong to this run.

        A subclass's fields (where data lies, what a card says) and the place of `budget.replay` do not count: data,
        model, objective and the replayed positions are compared by what they hold.
        """
        own = set(LoopConfig.model_fields) - {
            "checkpoint",
            "log_every",
            "workers",
            "compile",
            "parallel",
            "health",
            "device",
        }
        values = self.model_dump(mode="json", include=own)
        values["budget"].pop("replay")
        return values
