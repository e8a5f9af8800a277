"""What a run does when a step goes wrong. A loss or a gradient that is not finite never reaches the weights.

    health: {nonfinite: skip, spike: {policy: rewind, z: 6, window: 50, back: 20}, rewinds: 3, skips: 10}

    stop     the run ends with a line that names the step, the samples and the first module that went wrong
    skip     the update is not made; the step counts, its data are passed over
    rewind   back to the newest checkpoint, and on from there with the data after those of the step (the remedy of
             PaLM for spikes, Chowdhery et al. 2022, section 5.1)

What was skipped, and from which step on the data are taken later than their number says, is part of the checkpoint.
All of it follows from the losses, so a run that is killed goes the same way again, to the last bit. For the same
reason a rewind goes to a checkpoint that `checkpoint.every` made, not to one that an interruption left.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from nalanda.config import Config
from nalanda.data.batch import Batch
from nalanda.data.source import Source

Action = Literal["none", "note", "stop", "skip", "rewind"]
_SIGMA = 1.4826  # times the median deviation is the standard deviation of normal values


class SpikeConfig(Config):
    """When a loss is a spike, and what is done then.

    A step's loss is one where it is above the median of the last `window` losses by more than `z` standard deviations
    (as the median deviation tells them) and by more than `rise` of that median. Nothing is looked for during the
    schedule's warm-up, nor before `window` losses are known.
    """

    policy: Literal["ignore", "note", "skip", "rewind"] = "ignore"
    z: float = Field(default=6.0, gt=0)
    rise: float = Field(default=0.1, ge=0)
    window: int = Field(default=50, ge=8)
    back: int = Field(default=20, ge=0, description="a rewind goes back by at least so many steps")


class HealthConfig(Config):
    """What is done about steps that go wrong.

    nonfinite: where the loss or the gradient is not finite. rewinds: most rewinds of a run, skips: most skipped steps
    in a row; one more ends it. split: whether micro-batches are made smaller where memory runs out.
    """

    nonfinite: Literal["stop", "skip", "rewind"] = "stop"
    spike: SpikeConfig = SpikeConfig()
    rewinds: int = Field(default=3, gt=0)
    skips: int = Field(default=10, gt=0)
    split: bool = True

    @property
    def may_rewind(self) -> bool:
        """Whether any policy goes back to a checkpoint."""
        return "rewind" in (self.nonfinite, self.spike.policy)

    def problem(self, every: int, keep: int) -> str:
        """Why checkpoints of every `every` steps, `keep` of them kept, do not do for this; empty where they do."""
        if self.spike.policy != "rewind" or self.spike.back <= every * (keep - 1):
            return ""
        wanted = -(-self.spike.back // every) + 1
        return (
            f"health.spike.back: {self.spike.back} steps back need {wanted} checkpoints of every {every} steps, "
            f"and {keep} are kept; set checkpoint.keep={wanted}"
        )


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a step, and what is done about it: `back`: a rewind's least distance in steps."""

    action: Action
    why: str = ""
    back: int = 0


FINE = Trouble("none")


class Health:
    """What the losses of a run say, and what was done about them."""

    def __init__(self, config: HealthConfig, warmup: float = 0.0) -> None:
        """`warmup`: the schedule's, as a share of the budget."""
        self.config, self.warmup = config, warmup
        self.losses: list[float] = []
        self.events: list[dict[str, Any]] = []
        self.jumps: list[tuple[int, int]] = []
        """(step, offset): from that step on the data are those of `offset` steps later."""
        self.rewinds = 0
        self.in_a_row = 0
        self.parts = 1
        """In how many parts the rows of each micro-batch are cut, because memory ran out."""
        self.unsaved = False
        """Whether there is something that no replay of the losses would find again."""

    # -- what is wrong ---------------------------------------------------------------------------------------------

    def judge(self, loss: float, norm: float, progress: float) -> Trouble:
        """What to do about a step of this loss and gradient norm. The loss counts from now on."""
        config = self.config
        if not math.isfinite(loss):
            return Trouble(config.nonfinite, f"the loss is {loss}")
        if not math.isfinite(norm):
            return Trouble(config.nonfinite, f"the gradient is {norm}")
        if config.spike.policy == "ignore":
            return FINE
        usual = self._usual() if progress >= self.warmup else None
        self.losses = [*self.losses, loss][-config.spike.window :]
        if usual is None or loss <= usual[1]:
            return FINE
        why = f"the loss is {loss:.4g}, and {usual[0]:.4g} in the middle of the {config.spike.window} steps before"
        return Trouble(config.spike.policy, why, config.spike.back)

    def _usual(self) -> tuple[float, float] | None:
        """The median of the last losses and the largest that is no spike; None while too few are known."""
        spike = self.config.spike
        if len(self.losses) < spike.window:
            return None
        middle = statistics.median(self.losses)
        spread = _SIGMA * statistics.median(abs(loss - middle) for loss in self.losses)
        return middle, middle + max(spike.z * spread, spike.rise * abs(middle))

    # -- what was done ---------------------------------------------------------------------------------------------

    def passed(self) -> None:
        """Books a step whose update was made."""
        self.in_a_row = 0

    def skipped(self, step: int, why: str) -> None:
        """Books a step without an update; `step` counts from 1."""
        self.in_a_row += 1
        self.events.append({"step": step, "kind": "skipped", "why": why})

    def noted(self, step: int, why: str) -> None:
        """Books a step that was only said to be strange."""
        self.events.append({"step": step, "kind": "noted", "why": why})

    def cut(self, step: int, why: str) -> None:
        """Cuts micro-batches in twice as many parts."""
        self.parts *= 2
        self.unsaved = True
        self.events.append({"step": step, "kind": "smaller micro-batches", "parts": self.parts, "why": why})

    def rewound(self, before: Health, step: int, target: int, why: str) -> None:
        """Makes this, which is as it was at step `target`, go on with the data after those of step `step`, which
        counts from 0; `before` is what was known until now."""
        self.rewinds = before.rewinds + 1
        self.parts = before.parts
        self.jumps = [jump for jump in before.jumps if jump[0] < target]
        self.jumps.append((target, step + before.offset(step) + 1 - target))
        lasting = [e for e in before.events if e["kind"] in ("rewound", "smaller micro-batches")]
        self.events += [event for event in lasting if event not in self.events]
        self.events.append({"step": step + 1, "kind": "rewound", "to": target, "why": why})

    # -- data ------------------------------------------------------------------------------------------------------

    def offset(self, step: int) -> int:
        """How many steps later the data of `step` are taken."""
        return next((offset for begin, offset in reversed(self.jumps) if begin <= step), 0)

    def view(self, source: Source) -> Source:
        """`source` without what is passed over."""
        return _Passing(source, self)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain JSON."""
        return {
            "losses": list(self.losses),
            "events": list(self.events),
            "jumps": [list(jump) for jump in self.jumps],
            "rewinds": self.rewinds,
            "in_a_row": self.in_a_row,
            "parts": self.parts,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave; from nothing, begins anew."""
        self.losses = list(state.get("losses", []))
        self.events = list(state.get("events", []))
        self.jumps = [(int(step), int(offset)) for step, offset in state.get("jumps", [])]
        self.rewinds = int(state.get("rewinds", 0))
        self.in_a_row = int(state.get("in_a_row", 0))
        self.parts = int(state.get("parts", 1))

    def follow(self, state: dict[str, Any]) -> None:
        """Passes over what the run of `state` passed over in its rewinds: for a replay of its last course."""
        self.jumps = [(int(step), int(offset)) for step, offset in state.get("jumps", [])]

    def copy(self) -> Health:
        """The same, apart."""
        other = Health(self.config, self.warmup)
        other.load(self.state())
        return other

    def result(self) -> dict[str, Any]:
        """The entry of result.json; nothing where nothing happened."""
        return {"health": self.events} if self.events else {}

    def lines(self) -> list[str]:
        """One line for each thing that happened."""
        return [line(event) for event in self.events]


class _Passing:
    """A source whose steps are those after what is passed over."""

    def __init__(self, source: Source, health: Health) -> None:
        self._source, self._health = source, health

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of optimizer step `step`."""
        return self._source.step(step + self._health.offset(step))


def line(event: dict[str, Any]) -> str:
    """What happened, for the user."""
    kind, step, why = event["kind"], event["step"], event["why"]
    if kind == "skipped":
        return f"step {step}: {why}; its update was not made and its data are passed over"
    if kind == "rewound":
        return (
            f"step {step}: {why}; back to step {event['to']}, and on with the data after those of step {step}"
        )
    if kind == "noted":
        return f"step {step}: {why}"
    return f"step {step}: {why}; the rows of each micro-batch are cut in {event['parts']} parts from here on"


def target_of(steps: Sequence[int], step: int, back: int, every: int) -> int | None:
    """The checkpoint that a rewind from `step` (steps done before it) goes to, of those there are.

    The newest regular one that is at least `back` steps before, else the oldest regular one, else the oldest of all;
    None without any.
    """
    known = [s for s in steps if s <= step]
    regular = [s for s in known if s % every == 0]
    far = [s for s in regular if s <= step - back]
    return max(far) if far else min(regular or known, default=None)
