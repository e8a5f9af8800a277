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
from torch import Tensor

from nalanda.base.errors import DataError, RunError
from nalanda.base.seeds import derive
from nalanda.data.batch import Batch, move
from nalanda.objectives.loss import Objective, add_counts
from nalanda.train.lanes import Lanes, split
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
    Raises DataError when the step's batches train nothing, RunError when the loss is not finite (naming the
    samples of the micro-batch where that happened).
    """
    totals = add_counts(objective.weights(batch) for batch in batches)
    if not any(totals.values()):
        raise DataError(
            f"step {step + 1}: no token of its {len(batches)} batches is trained; check the data's masks"
        )
    team = team or Team()
    found = _Found()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    alone = lanes is None or lanes.count == 1

    def work(part: Batch) -> tuple[Tensor, Sequence[Tensor | None], dict[str, Tensor], dict[str, Tensor]]:
        with autocast(precision, device):
            loss = objective(model, move(team.own(part), device), totals)
        team.check_terms(loss)
        terms = [term / totals[name] for name, term in loss.terms.items() if totals[name]]
        total = torch.stack(terms).sum()
        sums = {name: torch.stack([v.detach().double() for v in pair]) for name, pair in loss.metrics.items()}
        gradients: Sequence[Tensor | None] = []
        if total.requires_grad and alone:
            team.backward(total)
        elif total.requires_grad:  # lanes share the weights, so none may write to their `.grad`
            gradients = torch.autograd.grad(total, weights, allow_unused=True)
        return total.detach(), gradients, sums, loss.tallies

    summed = team.gradients(weights, len(batches))
    for part in team.parts(batches):
        torch.manual_seed(derive(seed, "step", step, *part.stream))
        rows = [part.batch] if lanes is None else split(part.batch, lanes.count)
        with team.computing(part):
            for total, gradients, sums, tallies in (
                map(work, rows) if lanes is None else lanes.run(work, rows)
            ):
                _add(weights, gradients)
                if part.counted:
                    found.add(part.micro, total, sums, tallies)
        summed.add()
    everyone = team.exchange({**found.plain(), "unseen": summed.unseen()})
    summed.finish([each["unseen"] for each in everyone])
    result = _result(everyone, batches, step, device)
    for batch in batches:
        _count(result, batch)
    return result


class _Found:
    """What this process's passes gave, on the device until the step is done."""

    def __init__(self) -> None:
        self.micros: list[int] = []
        self.losses: list[Tensor] = []
        self.metrics: dict[str, list[Tensor]] = {}
        self.tallies: dict[str, Tensor] = {}

    def add(self, micro: int, total: Tensor, sums: dict[str, Tensor], tallies: dict[str, Tensor]) -> None:
        """Keeps one pass's values."""
        self.micros.append(micro)
        self.losses.append(total)
        for name, value in sums.items():
            self.metrics.setdefault(name, []).append(value)
        for name, tally in tallies.items():
            self.tallies[name] = self.tallies.get(name, 0) + tally

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {
            "micros": self.micros,
            "losses": torch.stack(self.losses).double().tolist() if self.losses else [],
            "metrics": {name: torch.stack(pairs).tolist() for name, pairs in self.metrics.items()},
            "tallies": {name: tally.tolist() for name, tally in self.tallies.items()},
        }


def _result(
    everyone: Sequence[dict[str, Any]], batches: Sequence[Batch], step: int, device: torch.device
) -> Step:
    """The step's values from those of all processes: exact sums, which no order of additions changes."""
    losses = [value for each in everyone for value in each["losses"]]
    _check_losses(losses, [batches[micro] for each in everyone for micro in each["micros"]], step)
    result = Step(loss=math.fsum(losses))
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


def _check_losses(values: Sequence[float], owners: Sequence[Batch], step: int) -> None:
    for value, batch in zip(values, owners, strict=True):
        if not math.isfinite(value):
            raise RunError(f"step {step + 1}: the loss is {value}; {_samples([batch])}; {_ADVICE}")


_ADVICE = (
    "nothing of this step was kept; look at these samples, lower the learning rate, or use precision: fp32"
)


def check_gradient(norm: float, step: int, batches: Sequence[Batch]) -> None:
    """Raises RunError naming the step and its samples when the gradient is not finite."""
    if not math.isfinite(norm):
        raise RunError(f"step {step + 1}: the gradient is {norm}; {_samples(batches)}; {_ADVICE}")


def _count(result: Step, batch: Batch) -> None:
    result.rows += batch["ids"].shape[0]
    result.tokens += int((batch["segments"] != 0).sum())
    if "source_segments" in batch:
        result.tokens += int((batch["source_segments"] != 0).sum())
    if "target_weight" in batch:
        result.trained += int((batch["target_weight"] != 0).sum())


def _samples(batches: Sequence[Batch]) -> str:
    ids = [
        int(i) for batch in batches if "sample_ids" in batch for i in batch["sample_ids"].tolist() if i >= 0
    ]
    if not ids:
        return "its batches carry no sample ids"
    shown = ", ".join(str(i) for i in ids[:8])
    return f"samples {shown}" + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
