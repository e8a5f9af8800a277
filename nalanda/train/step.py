"""The gradient of one optimizer step from its micro-batches: counts first, then one division per term.

    result = accumulate(model, objective, batches, seed=0, step=7, precision="fp32", device=device)

Gradients of any split of the same rows into micro-batches are equal up to rounding (1e-6 relative in fp32).
Dropout draws from a generator seeded by (seed, step, micro-batch), so a resumed run needs no stored state for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nalanda.base.errors import DataError
from nalanda.base.seeds import derive
from nalanda.data.batch import Batch, move
from nalanda.objectives.loss import Loss, Objective, add_counts
from nalanda.train.lanes import Lanes, split
from nalanda.train.memory import OutOfMemory, is_shortage, one_line
from nalanda.train.parallel import Team
from nalanda.train.precision import autocast


@dataclass
class Step:
    """What one step's forward and backward passes gave. All values add over steps.

    metrics: name -> (sum, count). tallies: name -> whole numbers. tokens: places that are not padding, in every
    stream. trained: places with a target. rows: rows of the micro-batches.
    """

    loss: float
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    tallies: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    trained: int = 0
    rows: int = 0


def accumulate(
    model: Any,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    seed: int,
    step: int,
    precision: str,
    device: torch.device,
    lanes: Lanes | None = None,
    team: Team | None = None,
) -> Step:
    """Adds the gradient of the step's loss to the weights' `.grad` and returns what to log.

    In a `team` each rank computes its share of the batches; gradient and result are those of all of them.
    Raises DataError when the step's batches train nothing, OutOfMemory on every rank where one ran out of memory
    (ranks that meet inside passes cannot tell each other: there the error itself is raised). A loss that is not
    finite is returned like any other: train/health.py looks at it.
    """
    totals = add_counts(objective.weights(batch) for batch in batches)
    if not any(totals.values()):
        raise DataError(
            f"step {step + 1}: no token of its {len(batches)} batches is trained; check the data's masks"
        )
    team, found = team or Team(), _Found()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    shared = weights if lanes is not None and lanes.count > 1 else None

    def work(part: Batch) -> _Passed:
        with autocast(precision, device):
            loss = objective(model, move(team.own(part), device), totals)
        team.check_terms(loss)
        return _backward(loss, totals, team, shared)

    summed, short = team.gradients(weights, len(batches)), ""
    try:
        for part in team.parts(batches):
            torch.manual_seed(derive(seed, "step", step, *part.stream))
            rows = [part.batch] if lanes is None else split(part.batch, lanes.count)
            with team.computing(part):
                for passed in map(work, rows) if lanes is None else lanes.run(work, rows):
                    _add(weights, passed.gradients)
                    if part.counted:
                        found.add(passed)
            summed.add()
    except (MemoryError, RuntimeError) as error:
        if team.meets or not is_shortage(error):
            raise
        short, found = one_line(error), _Found()
    everyone = team.exchange({**found.plain(), "unseen": summed.unseen(), "short": short})
    if short := next((each["short"] for each in everyone if each["short"]), ""):
        raise OutOfMemory(short)
    summed.finish([each["unseen"] for each in everyone])
    result = _result(everyone, device)
    for batch in batches:
        _count(result, batch)
    return result


@dataclass(frozen=True)
class _Passed:
    """What one forward and backward pass gave; `gradients` where they are not in the weights' `.grad`."""

    total: Tensor
    gradients: Sequence[Tensor | None]
    sums: dict[str, Tensor]
    tallies: dict[str, Tensor]


def _backward(
    loss: Loss, totals: dict[str, float], team: Team, shared: Sequence[nn.Parameter] | None
) -> _Passed:
    """Divides each term by its count and goes back; lanes share the weights, so none may write to their `.grad`."""
    terms = [term / totals[name] for name, term in loss.terms.items() if totals[name]]
    total = torch.stack(terms).sum()
    sums = {name: torch.stack([v.detach().double() for v in pair]) for name, pair in loss.metrics.items()}
    gradients: Sequence[Tensor | None] = []
    if total.requires_grad and shared is None:
        team.backward(total)
    elif total.requires_grad and shared is not None:
        gradients = torch.autograd.grad(total, shared, allow_unused=True)
    return _Passed(total.detach(), gradients, sums, loss.tallies)


class _Found:
    """What this process's passes gave, on the device until the step is done."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.metrics: dict[str, list[Tensor]] = {}
        self.tallies: dict[str, Tensor] = {}

    def add(self, passed: _Passed) -> None:
        """Keeps one pass's values."""
        self.losses.append(passed.total)
        for name, value in passed.sums.items():
            self.metrics.setdefault(name, []).append(value)
        for name, tally in passed.tallies.items():
            self.tallies[name] = self.tallies.get(name, 0) + tally

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {
            "losses": torch.stack(self.losses).double().tolist() if self.losses else [],
            "metrics": {name: torch.stack(pairs).tolist() for name, pairs in self.metrics.items()},
            "tallies": {name: tally.tolist() for name, tally in self.tallies.items()},
        }


def _result(everyone: Sequence[dict[str, Any]], device: torch.device) -> Step:
    """The step's values from those of all processes: exact sums, which no order of additions changes."""
    result = Step(loss=_sum([value for each in everyone for value in each["losses"]]))
    pairs: dict[str, list[list[float]]] = {}
    for each in everyone:
        for name, values in each["metrics"].items():
            pairs.setdefault(name, []).extend(values)
        for name, tally in each["tallies"].items():
            result.tallies[name] = result.tallies.get(name, 0) + torch.tensor(tally, device=device)
    for name, values in pairs.items():
        tops, bottoms = zip(*values)
        result.metrics[name] = (_sum(tops), _sum(bottoms))
    return result


def _sum(values: Sequence[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def _add(weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Adds a lane's gradients to the weights' `.grad`; an empty sequence adds nothing."""
    for weight, gradient in zip(weights, gradients):
        if gradient is not None:
            weight.grad = gradient if weight.grad is None else weight.grad + gradient


def _count(result: Step, batch: Batch) -> None:
    result.rows += batch["ids"].shape[0]
    result.tokens += int((batch["segments"] != 0).sum())
    if "source_segments" in batch:
        result.tokens += int((batch["source_segments"] != 0).sum())
    if "target_weight" in batch:
        result.trained += int((batch["target_weight"] != 0).sum())
