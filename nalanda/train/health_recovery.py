"""What follows when a step went wrong: searched, said, and skipped, gone back from, or the end of the run.

action = treat(trainer, result, norm, progress, batches)      # "none": the update may be made
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from nalanda.base.errors import RunError, UserError
from nalanda.data.batch import Batch
from nalanda.train.health import Action, Trouble, line, target_of
from nalanda.train.health_search import samples_of, search, shown
from nalanda.train.memory import in_parts, most_rows
from nalanda.train.memory_advice import advice
from nalanda.train.state import adopt
from nalanda.train.step import Step

if TYPE_CHECKING:
    from nalanda.train.loop import Trainer


def treat(trainer: Trainer, result: Step, norm: float, progress: float, batches: Sequence[Batch]) -> Action:
    """What becomes of the step whose gradient is known: "none", "skip" or "rewind" (done when this returns).

    Raises RunError where the run ends: by policy `stop`, or because it was rewound or skipped too often.
    """
    health, number = trainer.health, trainer.budget.step
    trouble = health.judge(result.loss, norm, progress)
    if trouble.action == "none":
        health.passed()
        return "none"
    why = f"{trouble.why}; {_where(trainer, result.loss, norm, batches)}"
    if trouble.action == "note":
        health.passed()
        health.noted(number, why)
        _say(trainer, number)
        return "none"
    trainer.optimizer.zero_grad()
    if trouble.action == "rewind":
        _rewind(trainer, trouble, why)
    elif trouble.action == "skip":
        if health.in_a_row >= health.config.skips:
            raise RunError(_line(number, f"{why}; {health.in_a_row} steps before it were skipped", "skips"))
        health.skipped(number, why)
        _say(trainer, number)
    else:
        raise RunError(_line(number, why))
    return trouble.action


def _where(trainer: Trainer, loss: float, norm: float, batches: Sequence[Batch]) -> str:
    if math.isfinite(loss) and math.isfinite(norm):
        return shown([i for batch in batches for i in samples_of(batch)])
    how: dict[str, Any] = trainer.how(trainer.budget.step - 1)
    parts = in_parts(list(batches), trainer.health.parts)
    with trainer.lanes.resting():
        finding = search(trainer.model, trainer.objective, parts, **how)
    return finding.text(len(parts))


def _line(step: int, why: str, limit: str = "") -> str:
    policy = f"health.{limit}" if limit else "health.nonfinite=skip"
    more = f", raise {policy}" if limit else f", or pass over such steps with {policy}"
    return (
        f"step {step}: {why}; nothing of this step was kept; look at these samples, lower the learning rate, "
        f"use precision: fp32{more}"
    )


def _say(trainer: Trainer, step: int) -> None:
    """Puts the last event into metrics.jsonl."""
    trainer.log({"step": step, "note": line(trainer.health.events[-1])})


def _rewind(trainer: Trainer, trouble: Trouble, why: str) -> None:
    """Takes over the checkpoint before the step and goes on from it with later data."""
    before, step = trainer.health.copy(), trainer.budget.step - 1
    if before.rewinds >= before.config.rewinds:
        raise RunError(
            _line(step + 1, f"{why}; the run was already rewound {before.rewinds} times", "rewinds")
        )
    store, seconds = trainer.checkpoints, trainer.budget.seconds
    trainer.writer.wait()
    target = trainer.team.of_first(target_of(store.steps(), step, trouble.back, store.config.every))
    if target is not None:  # what is later belongs to a course that is given up
        trainer.team.alone(lambda: store.remove_after(target))
    snapshot, damaged = trainer.team.newest(store)
    if snapshot is None:
        raise RunError(_line(step + 1, f"{why}; there is no checkpoint to go back to"))
    adopt(trainer, snapshot)
    trainer.budget.seconds = seconds  # the time was spent, whatever became of it
    trainer.health.rewound(before, step, snapshot.step, "; ".join([why, *damaged]))
    trainer.rewind(snapshot.step)
    _say(trainer, snapshot.step + 1)


def make_room(trainer: Trainer, batches: list[Batch], step: int, why: str) -> None:
    """Makes micro-batches smaller for the rest of the run, after the passes of `step` ran out of memory.

    Raises UserError with settings that would fit where they have one row each.
    """
    trainer.optimizer.zero_grad()
    gc.collect()
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    health = trainer.health
    if not health.config.split or most_rows(in_parts(batches, health.parts)) == 1:
        raise UserError(f"step {step}: out of memory ({why}); {advice(trainer, batches)}")
    health.cut(step, f"memory ran out ({why})")
    _say(trainer, step)
