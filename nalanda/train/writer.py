"""Writes checkpoints while training goes on.

    with Writer(checkpoints) as writer:
        if writer.overdue: writer.save(snapshot)        # back as soon as the tensors are copied
        writer.check()                                  # raises what a write met with, for example a full disk
        writer.save(last, wait=True)                    # back when it is on disk

The tensors are copied at a step's end to host memory that is kept for the next checkpoint (page-locked where they are
on a GPU); a thread hashes, writes, syncs and renames. At most one write is under way: the next save waits for it. A
kill while one is under way costs what a kill just before it would have: the checkpoint is whole or absent.
"""

from __future__ import annotations

import json
import threading
import time
from types import TracebackType

import torch
from torch import Tensor

from nalanda.base import machine
from nalanda.train.checkpoint import Checkpoints, Snapshot, bytes_of


class Writer:
    """The checkpoints of a run, each written at once or by a thread."""

    def __init__(self, store: Checkpoints) -> None:
        self.store = store
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved = time.monotonic()

    def __enter__(self) -> Writer:
        self._saved = time.monotonic()
        return self

    @property
    def overdue(self) -> bool:
        """Whether `minutes` have passed since the last checkpoint was begun (or the training)."""
        minutes = self.store.config.minutes
        return minutes is not None and time.monotonic() - self._saved >= 60 * minutes

    def save(self, snapshot: Snapshot, wait: bool = False) -> None:
        """Writes a checkpoint; without `wait` it may still be under way afterwards.

        Raises what the write before it met with, UserError for a full disk.
        """
        store = self.begin()
        if wait or not store.config.asynchronous or not self._room(snapshot):
            store.save(snapshot)
            return
        try:
            thread = threading.Thread(target=self._write, args=(self._copied(snapshot),), name="checkpoint")
            thread.start()
        except (MemoryError, RuntimeError):  # no room for the copy after all, or for a thread's stack
            self._buffers = {}
            store.save(snapshot)
            return
        self._thread = thread

    def begin(self) -> Checkpoints:
        """Where a checkpoint goes that is written now, by others or by `save`; waits for the one under way."""
        self.wait()
        self._saved = time.monotonic()
        return self.store

    def _room(self, snapshot: Snapshot) -> bool:
        """Whether memory has room for the copy; without, the checkpoint is written at once."""
        free = machine.free_memory()
        return bool(self._buffers) or free is None or 2 * bytes_of(snapshot) < free

    def _copied(self, snapshot: Snapshot) -> Snapshot:
        parts: dict[str, dict[str, Tensor]] = {}
        for part in ("model", "optimizer", "extra"):
            parts[part] = {k: self._buffer(f"{part}/{k}", v) for k, v in getattr(snapshot, part).items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        known = {f"{part}/{name}" for part, values in parts.items() for name in values}
        self._buffers = {name: buffer for name, buffer in self._buffers.items() if name in known}
        state = json.loads(json.dumps(snapshot.state))
        return Snapshot(
            snapshot.step, parts["model"], parts["optimizer"], parts["extra"], state, dict(snapshot.ties)
        )

    def _buffer(self, name: str, value: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(value.detach(), non_blocking=value.is_cuda)

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self.store.save(snapshot)
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raises what the last write met with."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Waits for the write under way; raises what it met with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the write under way; an error of the block comes before one of the write."""
        self._buffers = {}
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()
            self._thread = None
