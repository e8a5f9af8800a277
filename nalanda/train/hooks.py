"""What happens between steps: evaluation, early stopping, samples, TensorBoard. All of it survives a resume.

    hooks = [Evaluation(EvaluationConfig(every=500, patience=5), dev, objective), Sampling(500, translate_some)]
    fit(..., hooks=hooks)

A hook sees a `Moment` after each step, logs through it, may ask to stop, and gives the checkpoint its state (plain
JSON) and tensors. Inside `moment.weights()` the model holds the weights that would be exported: the averaged ones
where averaging is on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from nalanda.base.errors import DataError, RunError, UserError
from nalanda.base.seeds import derive
from nalanda.config import Config
from nalanda.data.batch import Batch, move
from nalanda.objectives.loss import Objective, add_counts
from nalanda.train.checkpoint import restore_weights, weights_of
from nalanda.train.parallel import Team
from nalanda.train.precision import autocast


@dataclass
class Moment:
    """What a hook sees. `step`: steps done; `last`: whether the budget is spent; `tallies`: the objective's, of this
    step; `stop`: a reason to end here; `asked`: whether a signal asks for an end, so that long work is put off;
    `team`: the ranks that share work out, None for a process alone."""

    step: int
    last: bool
    model: Any
    device: torch.device
    precision: str
    seed: int
    log: Callable[[dict[str, Any]], None]
    weights: Callable[[], contextlib.AbstractContextManager[None]]
    tallies: dict[str, Tensor] = field(default_factory=dict)
    stop: str = ""
    asked: Callable[[], bool] = lambda: False
    team: Team | None = None


class Postponed(Exception):
    """Raised by a hook's `after_step` that has changed nothing yet: it runs again when the run goes on."""


class Hook:
    """Does nothing; override what is wanted. `name` keys its state in the checkpoint."""

    name = "hook"

    def watches(self, step: int) -> bool:
        """Whether the two methods below, which must change nothing, are called in the `step`-th step."""
        return False

    def before_update(self, moment: Moment, batches: Sequence[Batch]) -> None:
        """Called with the whole gradient in the weights' `.grad`, not clipped yet."""

    def after_update(self, moment: Moment) -> None:
        """Called after the optimizer's update, or where none was made."""

    def after_step(self, moment: Moment) -> None:
        """Called after each optimizer step, before the step's checkpoint is saved."""

    def logged(self, row: dict[str, Any]) -> None:
        """Called with every row that goes to metrics.jsonl."""

    def state(self) -> dict[str, Any]:
        """What to keep, as plain JSON."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What to keep, as tensors."""
        return {}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor], step: int) -> None:
        """Goes on from what `state` and `tensors` gave at `step`."""

    def finish(self, model: Any) -> dict[str, Any]:
        """Called once at the end; may set the model's final weights; returns entries of the result."""
        return {}


class EvaluationConfig(Config):
    """When to evaluate and what to do about it.

    every: optimizer steps between evaluations; one more is made at the end. batches: how many of the data to use,
    None for all. monitor: the value that should fall (`loss`, `nll`, ...) or, with `higher_is_better`, rise.
    patience: evaluations without a better value before training ends; None never ends it. keep_best: whether the
    final weights are those of the best evaluation.
    """

    every: int = Field(default=500, gt=0)
    batches: int | None = Field(default=None, gt=0)
    monitor: str = "loss"
    higher_is_better: bool = False
    patience: int | None = Field(default=None, gt=0)
    keep_best: bool = True


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside, the model has no dropout and keeps no gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def evaluate(
    model: Any,
    objective: Objective,
    source: Any,
    *,
    device: torch.device,
    precision: str = "fp32",
    batches: int | None = None,
    asked: Callable[[], bool] = lambda: False,
    team: Team | None = None,
) -> dict[str, float]:
    """The objective over one pass of `source.epoch()`: loss, each metric, and perplexity where nll is one.

    The batches are shared out to the ranks of `team`; values are added in the batches' order, as alone. Sums over
    the whole pass are divided once, so the result does not depend on the batches' sizes.
    Raises DataError when the pass has nothing to score, Postponed when `asked` says that there is no time for it.
    """
    totals: dict[str, float] = {}
    terms: dict[str, float] = {}
    metrics: dict[str, list[float]] = {}
    team, found = team or Team(), []
    with evaluating(model):
        for turn, batch, counted in team.turns(islice(source.epoch(), batches)):
            if asked():
                raise Postponed
            totals = add_counts([totals, *map(objective.weights, turn)])
            with autocast(precision, device):
                loss = objective(model, move(batch, device), objective.weights(batch))
            if counted:
                own = {name: [float(top), float(bottom)] for name, (top, bottom) in loss.metrics.items()}
                found.append([{name: float(term) for name, term in loss.terms.items()}, own])
    for of_batch, own in team.in_turn(found):
        for name, term in of_batch.items():
            terms[name] = terms.get(name, 0.0) + term
        for name, (top, bottom) in own.items():
            sums = metrics.setdefault(name, [0.0, 0.0])
            sums[0] += top
            sums[1] += bottom
    if not any(totals.values()):
        raise DataError("evaluation: its data has no target to score; check the dev split and the masks")
    values = {"loss": math.fsum(terms[name] / totals[name] for name in terms if totals[name])}
    values |= {name: top / bottom for name, (top, bottom) in metrics.items() if bottom}
    if "nll" in values:
        values["perplexity"] = math.exp(min(values["nll"], 700.0))
    return values


class Evaluation(Hook):
    """Scores held-out data, keeps the best weights, and ends a training that no longer gets better."""

    def __init__(
        self, config: EvaluationConfig, source: Any, objective: Objective, name: str = "dev"
    ) -> None:
        self.config, self.source, self.objective, self.name = config, source, objective, name
        self.best: dict[str, Any] = {}
        self.waited = 0
        self._weights: dict[str, Tensor] = {}

    def after_step(self, moment: Moment) -> None:
        """Evaluates every `every` steps and at the end."""
        if moment.step % self.config.every and not moment.last:
            return
        with moment.weights():
            values = evaluate(
                moment.model,
                self.objective,
                self.source,
                device=moment.device,
                precision=moment.precision,
                batches=self.config.batches,
                asked=moment.asked,
                team=moment.team,
            )
            moment.log(
                {"step": moment.step, **{f"{self.name}_{key}": value for key, value in values.items()}}
            )
            self._judge(moment, values)

    def _judge(self, moment: Moment, values: dict[str, float]) -> None:
        config = self.config
        if config.monitor not in values:
            raise RunError(
                f"evaluation.monitor: no value '{config.monitor}'; there are {', '.join(sorted(values))}"
            )
        value = values[config.monitor]
        best = self.best.get("value")
        if best is None or (value > best if config.higher_is_better else value < best):
            self.best = {"step": moment.step, "value": value}
            self.waited = 0
            if config.keep_best:
                self._weights = {k: v.to("cpu", copy=True) for k, v in weights_of(moment.model)[0].items()}
            return
        self.waited += 1
        if config.patience is not None and self.waited >= config.patience:
            moment.stop = f"{self.name}_{config.monitor} was not better in {self.waited} evaluations"

    def state(self) -> dict[str, Any]:
        """The best value so far and the evaluations since."""
        return {"best": self.best, "waited": self.waited}

    def tensors(self) -> dict[str, Tensor]:
        """The best weights so far."""
        return dict(self._weights)

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor], step: int) -> None:
        """Goes on from a checkpoint."""
        self.best, self.waited, self._weights = state["best"], state["waited"], dict(tensors)

    def finish(self, model: Any) -> dict[str, Any]:
        """Gives the model its best weights where they are kept."""
        if self._weights:
            restore_weights(model, self._weights, weights_of(model)[1], f"best weights of {self.name}")
        return {f"best_{self.name}": {"monitor": self.config.monitor, **self.best}} if self.best else {}


class Sampling(Hook):
    """Every `every` steps and at the end, logs what `sample(model)` returns: JSON values to look at."""

    name = "samples"

    def __init__(self, every: int, sample: Callable[[Any], Any]) -> None:
        self.every, self.sample = every, sample

    def after_step(self, moment: Moment) -> None:
        """Samples with a generator seeded by the step."""
        if moment.step % self.every and not moment.last:
            return
        torch.manual_seed(derive(moment.seed, "samples", moment.step))
        with moment.weights(), evaluating(moment.model):
            moment.log({"step": moment.step, "samples": self.sample(moment.model)})


class TensorBoard(Hook):
    """Mirrors the numbers of metrics.jsonl to TensorBoard files. Needs the `track` extra."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def _open(self, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("TensorBoard is not installed; run: pip install -e '.[track]'") from None
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor], step: int) -> None:
        """Drops what was written after `step`."""
        self._open(step)

    def logged(self, row: dict[str, Any]) -> None:
        """Writes each number of the row."""
        if self.writer is None:
            self._open(0)
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                self.writer.add_scalar(key, value, row["step"])

    def finish(self, model: Any) -> dict[str, Any]:
        """Closes the files."""
        if self.writer is not None:
            self.writer.close()
        return {}
