"""How long training lasts and how the learning rate moves: pure functions of progress from 0 to 1.

    budget = BudgetConfig(steps=10_000)         # or BudgetConfig(minutes=5)
    schedule = ScheduleConfig(kind="cosine", warmup=0.05)
    factor = schedule.factor(progress)          # multiplies the optimizer's learning rates

Progress is measured in steps or in minutes of training (steps and waits for data; evaluation, sampling and
checkpoints do not count). A budget of minutes depends on how fast the machine was: two such runs are not
bit-equal. Each position is therefore kept in the checkpoint, and `BudgetConfig(replay=CHECKPOINT)` walks the same
positions again, step for step, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from nalanda.base.errors import RunError
from nalanda.config import Config


class BudgetConfig(Config):
    """How long to train: exactly one of `steps`, `minutes` and `replay`.

    steps: optimizer steps. minutes: time spent in steps. replay: a checkpoint folder whose positions are repeated.
    """

    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    replay: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> BudgetConfig:
        if sum(value is not None for value in (self.steps, self.minutes, self.replay)) != 1:
            raise ValueError("give exactly one of steps, minutes, replay (for example steps: 10000)")
        return self


_DOWN: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "sqrt": lambda done: 1 - math.sqrt(done),
}
_LINEAR: Callable[[Any], bool] = "linear".__eq__


class ScheduleConfig(Config):
    """The learning rate's course.

    constant      peak after warm-up
    linear        straight down to `final`
    cosine        half a cosine down to `final` (Loshchilov and Hutter, 2017)
    inverse_sqrt  peak * sqrt(warmup / progress) (Vaswani et al., 2017)
    wsd           stays at the peak, then down over the last `decay` of the budget (Hu et al., 2024): straight, as
                  half a cosine, or as 1 - sqrt, soon low and long there (`cooldown`; Haegele et al., 2024)

    warmup: share of the budget (0.05), or from 1 up a number of steps (needs a budget in steps).
    final: the last learning rate as a share of the peak.
    """

    kind: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = "cosine"
    warmup: float = Field(default=0.02, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    decay: float = Field(default=0.2, gt=0, le=1)
    cooldown: Literal["linear", "cosine", "sqrt"] = Field(
        default="linear", exclude_if=_LINEAR, description="how wsd goes down"
    )

    def in_shares(self, budget: BudgetConfig) -> ScheduleConfig:
        """The same schedule with `warmup` as a share. Raises ValueError where it is not one of this budget."""
        if self.warmup < 1:
            return self
        if budget.steps is None:
            raise ValueError(
                f"schedule.warmup: {self.warmup:g} steps need a budget in steps; give a share, for example 0.05"
            )
        if self.warmup >= budget.steps:
            raise ValueError(
                f"schedule.warmup: {self.warmup:g} steps leave nothing of a budget of {budget.steps} steps"
            )
        return self.model_copy(update={"warmup": self.warmup / budget.steps})

    def factor(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1], as a share of its peak; `warmup` must be a share."""
        warm = self.warmup
        if progress < warm:
            return progress / warm
        if self.kind == "constant":
            return 1.0
        if self.kind == "inverse_sqrt":
            return math.sqrt(max(warm, 1e-9) / max(progress, 1e-9)) if warm else 1.0
        if self.kind == "wsd":
            start = max(warm, 1 - self.decay)
        else:
            start = warm
        done = min(max((progress - start) / max(1 - start, 1e-9), 0.0), 1.0)
        left = _DOWN[self.cooldown if self.kind == "wsd" else self.kind](done)
        return self.final + (1 - self.final) * left


class Budget:
    """Where training stands: hands out each step's progress and says when it is over.

    budget = Budget(config)
    while not budget.over:
        progress = budget.begin()      # of the step that now begins
        ...
        budget.end(seconds)            # what the step took
    """

    def __init__(self, config: BudgetConfig, replayed: list[float] | None = None) -> None:
        """`replayed`: the positions to repeat, for a budget of kind replay."""
        if (config.replay is None) != (replayed is None):
            raise ValueError("a replay budget needs the replayed positions, and only it takes them")
        self.config = config
        self.replayed = replayed
        self.seconds = 0.0
        self.positions: list[float] = []

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.positions)

    @property
    def total(self) -> int | None:
        """Steps in all, or None where time decides."""
        return self.config.steps if self.replayed is None else len(self.replayed)

    @property
    def share(self) -> float:
        """How much of the budget is spent, from 0 to 1."""
        if self.config.minutes is not None:
            return min(self.seconds / (self.config.minutes * 60), 1.0)
        return self.step / (self.total or 1)

    @property
    def over(self) -> bool:
        """Whether the budget is spent."""
        if self.config.minutes is not None:
            return self.seconds >= self.config.minutes * 60
        return self.step >= (self.total or 0)

    def begin(self) -> float:
        """Progress of the step that begins: at its middle for a budget in steps, at its start for one in minutes.

        Never 0, so that no step is wasted on a learning rate of 0.
        """
        if self.replayed is not None:
            progress = self.replayed[self.step]
        elif self.config.minutes is not None:
            progress = min(max(self.seconds / (self.config.minutes * 60), 0.0005), 1.0)
        else:
            progress = (self.step + 0.5) / (self.config.steps or 1)
        self.positions.append(progress)
        return progress

    def end(self, seconds: float) -> None:
        """Books the seconds that the step took."""
        self.seconds += seconds

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps beside `positions`."""
        return {"seconds": self.seconds}

    def load(self, state: dict[str, float], positions: list[float]) -> None:
        """Goes on from a checkpoint. Raises RunError where a replay left its track."""
        if self.replayed is not None and positions != self.replayed[: len(positions)]:
            raise RunError(
                "the checkpoint's schedule positions are not those of budget.replay; choose another folder"
            )
        self.seconds = state["seconds"]
        self.positions = list(positions)
