"""The training loop: one for every objective, model and source.

    result = fit(model, objective, source, config, run_folder, hooks=[...], log=run.log, rewind=run.rewind_metrics)

    batches of the step -> counts of every term -> forward, backward per micro-batch -> clip -> optimizer
    -> average -> log -> hooks -> checkpoint

A run that was killed at any moment goes on from its newest whole checkpoint when `fit` is called again with the same
arguments: every later loss and the final weights are the same to the last bit, with a budget in steps, on the same
machine, threads and torch version, with `deterministic: true`. (With a budget in minutes the schedule follows the
clock; `budget.replay` repeats such a run exactly.) `log` gets rows for metrics.jsonl whose `step` is the number of
steps done; `rewind(step)` must drop the rows of later steps.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nalanda.base.progress import Progress, ProgressFactory, silent
from nalanda.data.batch import Batch
from nalanda.data.loader import Loader
from nalanda.data.source import Source
from nalanda.objectives.loss import Objective
from nalanda.train.allocator import retained
from nalanda.train.average import Average
from nalanda.train.checkpoint import Checkpoints, Snapshot, read_snapshot
from nalanda.train.compile import compiled, decide
from nalanda.train.config import LoopConfig
from nalanda.train.device import find_device
from nalanda.train.health import Health
from nalanda.train.health_recovery import make_room, treat
from nalanda.train.hooks import Hook, Moment, Postponed
from nalanda.train.interrupt import Interruption, stopped
from nalanda.train.lanes import Lanes, lanes_for
from nalanda.train.memory import OutOfMemory, in_parts
from nalanda.train.memory_advice import forecast, told
from nalanda.train.optimizer import Optimizer
from nalanda.train.parallel import team_for
from nalanda.train.precision import resolve, slow_because
from nalanda.train.schedule import Budget
from nalanda.train.state import adopt, environment, snapshot_of
from nalanda.train.step import Step, accumulate
from nalanda.train.window import Window
from nalanda.train.writer import Writer

Row = dict[str, Any]


def fit(
    model: nn.Module,
    objective: Objective,
    source: Source,
    config: LoopConfig,
    run_folder: Path,
    *,
    hooks: Sequence[Hook] = (),
    log: Callable[[Row], None] = lambda row: None,
    rewind: Callable[[int], None] = lambda step: None,
    mark: Callable[[], Row] = dict,
    verify: Callable[[Row], str] = lambda mark: "",
    progress: ProgressFactory = silent,
    device: torch.device | str | None = None,
) -> Row:
    """Trains `model` in place until the budget is spent and returns what to put into result.json.

    Raises Interrupted after Ctrl-C, Terminated after SIGTERM (the step is finished and saved first), RunError for a
    loss that is not finite (naming step, samples and module: train/health.py) and for checkpoints of another config,
    objective, model or source, UserError for a full disk (earlier checkpoints stay whole) and where memory runs out.
    """
    place = torch.device(device) if device is not None else find_device(config.device)
    with _settings(config, place), retained():
        model = (
            model if config.parallel.shard else model.to(place)
        )  # else block by block, as it is shared out
        trainer = Trainer(model, objective, source, config, run_folder, hooks, log, rewind, place)
        trainer.mark, trainer.verify = mark, verify
        trainer.resume()
        trainer.run(progress)
        return trainer.finish()


@contextlib.contextmanager
def _settings(config: LoopConfig, device: torch.device) -> Iterator[None]:
    """Global switches of torch for the time of a run.

    Denormal numbers become 0 (they appear in Adam's second moments and are a hundred times slower on CPUs).
    """
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    if config.deterministic:
        if device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill


class Trainer:
    """One call of `fit`: the loop's state and its three acts, resume, run, finish."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        source: Source,
        config: LoopConfig,
        run_folder: Path,
        hooks: Sequence[Hook],
        log: Callable[[Row], None],
        rewind: Callable[[int], None],
        device: torch.device,
    ) -> None:
        self.model, self.objective, self.source, self.config = model, objective, source, config
        self.hooks, self.device = list(hooks), device
        self.team = team_for(config.parallel, model, device)
        self._log = log if self.team.first else lambda row: None
        self.precision = resolve(config.precision, device)
        self.decision = self.team.compiling(decide(config.compile, device, config.budget))
        self.rewind = rewind if self.team.first else lambda step: None
        self.lanes = Lanes(1 if self.team.one_thread else lanes_for(model, device, self.decision.compiled))
        self.schedule = config.schedule.in_shares(config.budget)
        self.health = Health(config.health, self.schedule.warmup)
        replayed = None if config.budget.replay is None else read_snapshot(config.budget.replay)
        self.budget = Budget(config.budget, replayed.extra["positions"].tolist() if replayed else None)
        if replayed is not None:
            self.health.follow(replayed.state.get("health", {}))
        self.optimizer = Optimizer(config.optimizer, model)
        self.optimizer.share_out(self.lanes)
        self.team.spread(self.optimizer)
        self.average = Average(config.ema, model) if config.ema else None
        self.checkpoints = Checkpoints(run_folder / "checkpoints", config.checkpoint)
        self.checkpoints.regular_too = config.health.may_rewind
        self.window = Window()
        self.writer = Writer(self.checkpoints)
        self.mark: Callable[[], Row] = dict
        self.verify: Callable[[Row], str] = lambda mark: ""
        self.tallies: dict[str, torch.Tensor] = {}
        self.waiting = 0  # hooks, the last ones, that have not run yet after the step done last
        self.stopping = self.stopped = ""
        self.notes: list[str] = []
        names = [hook.name for hook in self.hooks]
        if len(set(names)) != len(names):
            raise ValueError(f"two hooks have one name: {', '.join(names)}")

    # -- resume ----------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Takes over the newest whole checkpoint, or starts a new run."""
        snapshot, damaged = self.team.newest(self.checkpoints)
        if snapshot is None:
            self.rewind(-1)
        else:
            adopt(self, snapshot)
            damaged += self.team.of_first(self._damaged_rows(snapshot))
            self.team.alone(lambda: self.checkpoints.remove_after(snapshot.step))
            self.rewind(snapshot.step)
        for line in damaged:
            self.note(f"{line}; going on from step {self.budget.step}")
        for line in (self.decision.note, slow_because(self.config.precision, self.device), self._one_batch()):
            if line:
                self.note(line)

    def _one_batch(self) -> str:
        if self.budget.step or self.source.steps_per_epoch > 1:
            return ""
        return "data: one batch holds all rows: every step is a whole epoch; lower data.batch_tokens for more steps"

    def _damaged_rows(self, snapshot: Snapshot) -> list[str]:
        mark = snapshot.state.get("metrics")
        problem = self.verify(mark) if mark and self.team.first else ""
        return [problem] if problem else []

    # -- run -------------------------------------------------------------------------------------------------------

    def run(self, progress: ProgressFactory) -> None:
        """Steps until the budget is spent, a hook stops, or the user interrupts."""
        if self._over():
            return
        total, self.model = self.budget.total, self.model.train()
        for line in forecast(self):
            self.note(line)
        with (
            told(self),
            compiled(self.model, self.decision),
            self.lanes,
            Interruption() as interruption,
            self.writer,
            Loader(self.health.view(self.source), self.budget.step, self.config.workers) as loader,
            (progress if self.team.first else silent)("training", total=total, unit="steps") as bar,
        ):
            if self.decision.compiled:
                with interruption.at_once("before the first step"):
                    self._warm_up()
            bar.update(self.budget.step)
            if self.waiting:
                self._settle(interruption)
            if self.budget.step == 0 and self.health.config.may_rewind:
                self.save()
            while not self._over():
                began = time.perf_counter()
                _, batches = next(loader)
                self.window.all_waited += time.perf_counter() - began
                if done := self._step(batches, began):
                    self._show(bar)
                    self.waiting = len(self.hooks)
                else:
                    loader.seek(self.budget.step)
                if done or self.waiting:
                    self._settle(interruption)

    def _over(self) -> bool:
        return (self.budget.over or bool(self.stopped)) and not self.waiting

    def _warm_up(self) -> None:
        """Compiles on the run's first batch, whatever step comes next: the same code after every resume."""
        self._accumulate(self.source.step(0), 0)
        self.optimizer.zero_grad()

    def how(self, step: int) -> Row:
        """What a step's passes go by, beside model, objective and batches."""
        how: Row = {"seed": self.config.seed, "step": step, "precision": self.precision}
        return {**how, "device": self.device, "team": self.team}

    def _accumulate(self, batches: list[Batch], step: int) -> Step:
        """The step's gradient; where memory runs out, of smaller micro-batches from here on."""
        while True:
            try:
                parts = in_parts(batches, self.health.parts)
                return accumulate(self.model, self.objective, parts, lanes=self.lanes, **self.how(step))
            except OutOfMemory as error:
                why = str(error)
            make_room(self, batches, step + 1, why)

    def _step(self, batches: list[Batch], began: float) -> bool:
        """One step; False where it was taken back and the run goes on from an earlier one."""
        step = self.budget.step
        progress = self.budget.begin()
        result = self._accumulate(batches, step)
        watching = [hook for hook in self.hooks if hook.watches(step + 1)]
        for hook in watching:
            hook.before_update(self._moment(), batches)
        limit = self.config.clip if self.config.clip is not None else float("inf")
        norm = self.team.clip(self.optimizer.named, limit)
        action, rate = treat(self, result, norm, progress, batches), 0.0
        if action == "none":
            rate = self.optimizer.step(self.schedule.factor(progress))
            if self.average is not None:
                self.average.update()
        for hook in watching if action != "rewind" else ():
            hook.after_update(self._moment())
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - began
        if self.config.budget.minutes is not None:
            seconds = self.team.longest(seconds)
        self.budget.end(seconds)
        if action == "none":
            self.tallies = result.tallies
            self.window.add(result, seconds, norm=norm, rate=rate, progress=progress)
        elif action == "skip":
            self.tallies = {}
            self.window.pass_over(seconds)
        return action != "rewind"

    def _show(self, bar: Progress) -> None:
        share = {} if self.budget.total else {"budget": f"{self.budget.share:.0%}"}
        bar.update(1, **self.window.shown(), **share)
        if self.budget.step % self.config.log_every == 0 or self.budget.over:
            self.log({"step": self.budget.step, **self.window.flush(), "seconds": self.budget.seconds})

    def _settle(self, interruption: Interruption) -> None:
        """What follows a step: its hooks, a checkpoint where one is due, the end where that was asked for."""
        stop = self._run_hooks(interruption)
        self.writer.check()
        self.stopping, asked, overdue = self.team.settled(stop, interruption.signal, self._overdue())
        if not self.waiting:
            self.stopped = self.stopping
        if self._over() or asked:
            self.save(wait=True)
        elif self.budget.step % self.config.checkpoint.every == 0 or overdue:
            self.save()
        if asked:
            raise stopped(asked, f"after step {self.budget.step}, which is saved")

    def _overdue(self) -> bool:
        return self.writer.overdue or self.health.unsaved

    def _run_hooks(self, interruption: Interruption) -> str:
        """Runs the hooks that wait; returns their reason to end. After a signal those that are left go on waiting, in
        the checkpoint."""

        def asked() -> bool:
            return bool(interruption.signal) and self.team.ranks.size == 1

        moment = self._moment(asked)
        with self.lanes.resting():
            while self.waiting and not asked():
                try:
                    self.hooks[-self.waiting].after_step(moment)
                except Postponed:
                    break
                self.waiting -= 1
        return moment.stop

    def _moment(self, asked: Callable[[], bool] = lambda: False) -> Moment:
        return Moment(
            step=self.budget.step,
            last=self.budget.over,
            model=self.model,
            device=self.device,
            precision=self.precision,
            seed=self.config.seed,
            log=self.log,
            weights=lambda: self.team.gathered(self.average.used if self.average else contextlib.nullcontext),
            tallies=self.tallies,
            stop=self.stopping,
            asked=asked,
            team=self.team,
        )

    def log(self, row: Row) -> None:
        """Hands a row to metrics.jsonl and to the hooks."""
        self._log(row)
        for hook in self.hooks:
            hook.logged(row)

    def note(self, text: str) -> None:
        """Keeps a line for the user, in metrics.jsonl and in the result."""
        self.notes.append(text)
        self._log({"step": self.budget.step, "note": text})

    def save(self, wait: bool = False) -> None:
        """Writes a checkpoint of this moment; without `wait` it may still be under way afterwards."""
        snapshot = snapshot_of(self)
        if self.team.first:
            snapshot.state["metrics"] = self.mark()
        with self.lanes.resting():
            self.team.save(self.writer, snapshot, wait)
        self.health.unsaved = False

    # -- finish ----------------------------------------------------------------------------------------------------

    def finish(self) -> Row:
        """Gives the model its final weights (averaged, or best, where asked) and returns the result."""
        if self.average is not None:
            self.average.adopt()
        result: Row = {
            "steps": self.budget.step,
            "training_seconds": round(self.budget.seconds, 3),
            **self.window.totals(),
            **environment(self),
            "parameters": self.team.parameters(self.optimizer.named),
            "stopped": self.stopped or "budget spent",
            "notes": [*self.health.lines(), *self.notes],
            **self.health.result(),
        }
        for hook in self.hooks:
            result |= hook.finish(self.model)
        self.team.restore()
        self.model.eval()
        return result
