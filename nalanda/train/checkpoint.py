"""Checkpoints: whole or absent, checked by SHA-256 when read, safetensors and JSON only.

store = Checkpoints(run_folder / "checkpoints", CheckpointConfig(every=500, keep=2))
store.save(Snapshot(step=500, model=..., optimizer=..., extra=..., state=...))
found = store.newest(device)        # None in a new run; a damaged folder is named and the one before it used

checkpoints/step-000500/
  model.safetensors       weights, a tied one once (its other names are in state.json)
  optimizer.safetensors   moments by weight name, schedule positions, averaged weights
  state.json              step, identity of config, data and model, budget, hooks, log window
  manifest.json           size and SHA-256 of each file
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nalanda.base import io
from nalanda.base.errors import RunError
from nalanda.config import Config, unset
from nalanda.models.exchange import write_tensors
from nalanda.train.parallel_files import PIECES, Own, read_pieces

FORMAT = 1
Found = TypeVar("Found")


class CheckpointConfig(Config):
    """When to save and how many of the newest to keep.

    every: optimizer steps between checkpoints; one more is made at the end. minutes: of wall clock after which one is
    made in any case. asynchronous: whether they are written while training goes on, from a copy in memory. None of
    these changes a bit of what is trained.
    """

    every: int = Field(default=500, gt=0)
    minutes: float | None = Field(default=None, gt=0, exclude_if=unset)
    keep: int = Field(default=2, gt=0)
    asynchronous: bool = Field(default=True, exclude_if=bool)


class NewerCheckpoint(RunError):
    """A checkpoint that a later version of Nalanda wrote: not damaged, and nothing that may be passed over."""


@dataclass
class Snapshot:
    """Everything that a run needs to go on. `state` is plain JSON; `ties`: a weight's other names -> its first."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)


def weights_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model's weights and buffers by name, each stored once, and other name -> first name of the tied ones."""
    first: dict[int, str] = {}
    weights: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in first:
            ties[name] = first[id(value)]
        else:
            first[id(value)] = name
            weights[name] = value.detach()
    return weights, ties


def restore_weights(model: nn.Module, weights: dict[str, Tensor], ties: dict[str, str], origin: str) -> None:
    """Copies weights into the model. Raises RunError naming the first missing, unknown or mis-shaped one."""
    own = model.state_dict()
    full = {**weights, **{name: weights[first] for name, first in ties.items() if first in weights}}
    for name, value in own.items():
        if name not in full:
            raise RunError(f"{origin}: has no weight '{name}', which the model needs")
        if full[name].shape != value.shape:
            raise RunError(
                f"{origin}: weight '{name}' is {tuple(full[name].shape)}, the model's is {tuple(value.shape)}"
            )
    for name in full:
        if name not in own:
            raise RunError(f"{origin}: holds a weight '{name}' that the model does not have")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(full[name])


class Checkpoints:
    """The checkpoint folders of one run."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config
        self.regular_too = False
        """Whether the newest that `every` made are kept beside the newest of all: those that a rewind goes to."""

    def path(self, step: int) -> Path:
        """The folder of one step's checkpoint."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """The steps that have a folder, in order."""
        if not self.folder.is_dir():
            return []
        names = [p.name.removeprefix("step-") for p in self.folder.iterdir() if p.name.startswith("step-")]
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, snapshot: Snapshot) -> Path:
        """Writes a checkpoint, then removes the oldest beyond `keep`.

        A full disk raises UserError and leaves every earlier checkpoint as it was.
        """
        path = self.path(snapshot.step)
        io.remove_partials(self.folder)
        write_snapshot(path, snapshot)
        self.remove_before(snapshot.step)
        return path

    def remove_before(self, step: int) -> None:
        """Removes the oldest checkpoints beyond `keep`, of those up to `step`."""
        known, keep = [s for s in self.steps() if s <= step], self.config.keep
        kept = set(known[-keep:])
        if self.regular_too:
            kept |= set([s for s in known if s % self.config.every == 0][-keep:])
        for old in known:
            if old not in kept:
                io.remove_folder(self.path(old))

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest whole checkpoint, and one line for each damaged one that was passed over.

        Raises RunError when there are checkpoints and all of them are damaged, or one is of a newer version.
        """
        return self._newest(self._read)

    def newest_step(self) -> tuple[int | None, list[str]]:
        """The step of the newest whole checkpoint; hashes are checked and no tensor is read."""

        def checked(step: int) -> int:
            io.verify_manifest(self.path(step))
            return step

        return self._newest(checked)

    def _newest(self, read: Callable[[int], Found]) -> tuple[Found | None, list[str]]:
        io.remove_partials(self.folder)
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                return read(step), damaged
            except NewerCheckpoint:
                raise
            except RunError as error:
                damaged.append(str(error))
        if damaged:
            raise RunError(
                f"{self.folder}: no checkpoint is whole ({damaged[0]}); remove the folder to start from the beginning"
            )
        return None, []

    def read(self, step: int, own: Own) -> Snapshot:
        """The checkpoint of a step that `newest_step` gave; `own` takes what is wanted of each tensor."""
        return self._read(step, own, verify=False)

    def _read(self, step: int, own: Own = lambda key, whole: whole, verify: bool = True) -> Snapshot:
        snapshot = read_snapshot(self.path(step), own, verify)
        if snapshot.step != step:
            raise RunError(
                f"{self.path(step)}: state.json says step {snapshot.step}: the folder is not in its place"
            )
        return snapshot

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: damaged ones that `newest` passed over."""
        for later in [s for s in self.steps() if s > step]:
            io.remove_folder(self.path(later))


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Writes one checkpoint folder: it appears whole or not at all. Nothing is read again to be hashed."""
    tensors = {f"optimizer/{k}": v for k, v in snapshot.optimizer.items()}
    tensors |= {f"extra/{k}": v for k, v in snapshot.extra.items()}
    parts = {"model.safetensors": snapshot.model, "optimizer.safetensors": tensors}
    known: io.Digests = {}
    with io.atomic_folder(path, known=known, needed=bytes_of(snapshot)) as draft:
        for name, values in parts.items():
            with io.hashed_writer(draft / name, known) as file:
                write_tensors(file, draft / name, values)
        with io.hashed_writer(draft / "state.json", known) as file:
            file.write((json.dumps(state_of(snapshot), ensure_ascii=False, indent=2) + "\n").encode())


def state_of(snapshot: Snapshot) -> dict[str, Any]:
    """What state.json holds."""
    return {"format": FORMAT, "step": snapshot.step, "ties": snapshot.ties, **snapshot.state}


def all_tensors(snapshot: Snapshot) -> dict[str, Tensor]:
    """Every tensor, its name after `model/`, `optimizer/` or `extra/`."""
    parts = {"model": snapshot.model, "optimizer": snapshot.optimizer, "extra": snapshot.extra}
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def bytes_of(snapshot: Snapshot) -> int:
    """What its tensors take."""
    parts = (snapshot.model, snapshot.optimizer, snapshot.extra)
    return sum(value.numel() * value.itemsize for part in parts for value in part.values())


def read_snapshot(path: Path, own: Own = lambda key, whole: whole, verify: bool = True) -> Snapshot:
    """Reads one checkpoint folder, of one process or of several. `own` takes what is wanted of each tensor.

    Raises RunError naming the file that is missing, damaged or from elsewhere, NewerCheckpoint where another version
    of Nalanda is needed to read it.
    """
    if verify:
        io.verify_manifest(path)
    state = io.read_mapping(path / "state.json")
    version = state.pop("format", None)
    if isinstance(version, int) and version > FORMAT:
        raise NewerCheckpoint(
            f"{path}: written by a newer version of Nalanda (checkpoint format {version}, this one reads {FORMAT}); "
            "upgrade, or choose another run folder"
        )
    if version != FORMAT:
        raise RunError(f"{path}: written by another version of Nalanda (checkpoint format is not {FORMAT})")
    if (path / PIECES).exists():
        tensors = read_pieces(path, own)
    else:
        try:
            tensors = {f"model/{k}": own(k, v) for k, v in load_file(path / "model.safetensors").items()}
            tensors |= {k: own(k, v) for k, v in load_file(path / "optimizer.safetensors").items()}
        except (SafetensorError, OSError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from error
    return Snapshot(
        step=state.pop("step"),
        model=under("model/", tensors),
        optimizer=under("optimizer/", tensors),
        extra=under("extra/", tensors),
        state=state,
        ties=state.pop("ties"),
    )


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
