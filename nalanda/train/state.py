"""What a run is, and where it stands: all that a checkpoint must hold for the run to go on as if nothing had been.

checkpoints.save(snapshot_of(trainer))
adopt(trainer, snapshot)          # refuses a checkpoint of another config, objective, model or source
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nalanda.base import io
from nalanda.base.errors import RunError
from nalanda.config import Config
from nalanda.train.checkpoint import Snapshot, restore_weights, under, weights_of
from nalanda.train.window import Window

if TYPE_CHECKING:
    from nalanda.train.loop import Trainer


def identity(trainer: Trainer) -> dict[str, Any]:
    """Hashes of what decides the course of a run: a checkpoint of others does not belong to it."""
    weights, _ = weights_of(trainer.model)
    spec = getattr(trainer.model, "spec", None)
    objective = trainer.objective
    config = objective.to_dict() if isinstance(objective, Config) else repr(type(objective))
    return {
        "training config": io.fingerprint([trainer.config.identity(), trainer.budget.replayed]),
        "objective": io.fingerprint(config),
        "model": io.fingerprint(
            [
                trainer.team.shapes(weights),
                spec.to_dict() if isinstance(spec, Config) else None,
            ]
        ),
        "source of data": trainer.source.fingerprint,
    }


def environment(trainer: Trainer) -> dict[str, Any]:
    """What decides the last bits of a loss on this machine: a difference at a resume is said."""
    cuda = trainer.device.type == "cuda"
    return {
        "torch": torch.__version__,
        "threads": trainer.lanes.threads,
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(trainer.device) if cuda else trainer.device.type,
        "precision": trainer.precision,
        "compiled": trainer.decision.compiled,
        "lanes": trainer.lanes.count,
    }


def adopt(trainer: Trainer, snapshot: Snapshot) -> None:
    """Goes on from `snapshot`. Raises RunError where it was made with another config, objective, model or source."""
    origin = str(trainer.checkpoints.path(snapshot.step))
    for what, value in identity(trainer).items():
        if snapshot.state["identity"].get(what) != value:
            raise RunError(f"{origin}: made with another {what}; use the same one, or another run folder")
    restore_weights(trainer.model, snapshot.model, snapshot.ties, origin)
    trainer.optimizer.load(snapshot.optimizer)
    extra = snapshot.extra
    trainer.budget.load(snapshot.state["budget"], extra["positions"].tolist())
    if trainer.average is not None:
        trainer.average.load(under("average/", extra))
    for hook in trainer.hooks:
        known = snapshot.state["hooks"].get(hook.name)
        if known is not None:
            hook.load(known, under(f"hooks/{hook.name}/", extra), snapshot.step)
    trainer.health.load(snapshot.state.get("health", {}))
    trainer.window = Window(**snapshot.state["window"])
    trainer.stopped = snapshot.state["stopped"]
    trainer.stopping = snapshot.state.get("stopping", trainer.stopped)
    trainer.waiting = min(snapshot.state.get("waiting", 0), len(trainer.hooks))
    trainer.tallies = under("tallies/", extra)
    for key, now in environment(trainer).items():
        then = snapshot.state["environment"].get(key)
        if then != now:
            trainer.note(f"{key} was {then} and is {now}: from here on, losses may differ in their last bits")


def snapshot_of(trainer: Trainer) -> Snapshot:
    """Everything that `adopt` needs, of this moment; its tensors are the run's own, not copies."""
    weights, ties = weights_of(trainer.model)
    extra = {"positions": torch.tensor(trainer.budget.positions, dtype=torch.float64)}
    if trainer.average is not None:
        extra |= {f"average/{name}": value for name, value in trainer.average.state().items()}
    for hook in trainer.hooks:
        extra |= {f"hooks/{hook.name}/{name}": value for name, value in hook.tensors().items()}
    if trainer.waiting:
        extra |= {f"tallies/{name}": value for name, value in trainer.tallies.items()}
    state = {
        "identity": identity(trainer),
        "environment": environment(trainer),
        "budget": trainer.budget.state(),
        "health": trainer.health.state(),
        "window": trainer.window.state(),
        "hooks": {hook.name: hook.state() for hook in trainer.hooks},
        "stopped": trainer.stopped,
        "stopping": trainer.stopping,
        "waiting": trainer.waiting,
    }
    return Snapshot(trainer.budget.step, weights, trainer.optimizer.state(), extra, state, ties)
