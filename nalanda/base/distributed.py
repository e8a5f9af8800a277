"""The processes of one run: who this one is, and the few words that they exchange.

    with joined():                       # under torchrun; a process alone just goes on
        ranks = current()
        ranks.first                      # the one that writes files and speaks
        ranks.gather({"loss": 2.1})      # everyone's values (plain JSON), in the order of ranks
        ranks.lead(build_the_store)      # the first works, the others wait, however long

Words are JSON and travel by gloo on the host, also beside GPUs. An error of any rank ends all of them: the first to
fail leaves word in the store that brought the processes together and says its line; the others, whose connection
breaks, find that word and end with the same exit code, without a line of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from nalanda.base.errors import UserError

Value = TypeVar("Value")
_FAILURE = "failure"
_LEFT = "left"
_SHORT = 2048  # bytes of a word that travel in one exchange
_LINGER = (
    10.0  # seconds that the first rank, which may host the store, waits for the others to be done with it
)


class Ranks:
    """The processes of a run; `Ranks()` is a process alone, for which every exchange is free."""

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self._store = rank, size, store
        self._turn = 0

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and speaks to the user."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order. Plain JSON; floats come back to the last bit."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        found = _exchange(len(text).to_bytes(8, "big") + text[:_SHORT], 8 + _SHORT, self.size)
        sizes = [int.from_bytes(each[:8], "big") for each in found]
        longest = max(sizes) - _SHORT
        more = _exchange(text[_SHORT:], longest, self.size) if longest > 0 else [b""] * self.size
        return [json.loads((one[8:] + two)[:size]) for one, two, size in zip(found, more, sizes, strict=True)]

    def largest(self, *values: float) -> list[float]:
        """The largest of each value among all ranks: how they agree on a clock, or that one was asked to stop."""
        return [max(column) for column in zip(*self.gather(list(values)), strict=True)]

    def of_first(self, value: Any) -> Any:
        """What the first rank gave, on every rank."""
        return self.gather(value if self.first else None)[0]

    def lead(self, work: Callable[[], Value]) -> Value | None:
        """The first rank does `work` and gets its result; the others wait without a time limit and get None.

        An error of the first ends the others quietly.
        """
        self._turn += 1
        key = f"turn/{self._turn}"
        if self.first:
            result = work()
            if self._store is not None:
                self._store.set(key, "done")
            return result
        pause = 0.01
        while not self._store.check([key]):
            if self._store.check([_FAILURE]):
                raise _quiet(self._store)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
        return None


_current = Ranks()


def current() -> Ranks:
    """The processes that this one works with: those of the `joined` block around, or itself alone."""
    return _current


def world_size() -> int:
    """How many processes torchrun started; 1 without it. Needs no torch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined(timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """Joins the processes that torchrun started (by its environment variables) for the time of the block.

    Each takes the GPU of its local rank where there are GPUs. Raises UserError where there are fewer of them than
    local ranks. `timeout`: how long an exchange may wait for the others.
    """
    global _current
    if world_size() == 1 or _current.size > 1:
        yield _current
        return
    import torch.distributed as dist

    backend = _backend()
    met, rank, size = next(iter(dist.rendezvous("env://", timeout=timeout)))
    store = dist.PrefixStore(
        f"nalanda/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", met
    )  # no word of old attempts
    ranks = Ranks(rank, size, store)
    try:
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout
        )
        _current = ranks
        yield ranks
    except BaseException as error:
        if not _speaks(store, error):
            raise _quiet(store) from error
        raise
    finally:
        _current = Ranks()
        _leave(ranks, store)


def _exchange(text: bytes, width: int, size: int) -> list[bytes]:
    """What each rank gave, filled up to `width` bytes."""
    import torch
    import torch.distributed as dist

    gather: Any = (
        getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    )  # its name before 2.13
    everyone = torch.empty(size * width, dtype=torch.uint8)
    gather(everyone, torch.frombuffer(bytearray(text.ljust(width, b" ")), dtype=torch.uint8))
    return [bytes(row.numpy()) for row in everyone.view(size, width)]


def _backend() -> str:
    import torch

    if not torch.cuda.is_available():
        return "gloo"
    local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= devices:
        raise UserError(
            f"torchrun: local rank {local} has no GPU of its own, this machine has {devices}; "
            f"set --nproc-per-node {devices}"
        )
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


def _speaks(store: Any, error: BaseException) -> bool:
    """Whether this rank's error is the first one, the one that is said."""
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    else:
        code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
    mine = f"{code} {os.getpid()}"
    try:
        if isinstance(error, RuntimeError):  # a connection that broke: who broke it may be about to say why
            time.sleep(0.5)
        said = store.compare_set(_FAILURE, "", mine)
    except Exception:  # the store is gone, and with it whoever hosted it and has spoken
        return isinstance(error, UserError)
    return bool(said.decode() == mine)


def _quiet(store: Any) -> SystemExit:
    try:
        return SystemExit(int(store.get(_FAILURE).decode().split()[0]))
    except Exception:
        return SystemExit(1)


def _leave(ranks: Ranks, store: Any) -> None:
    import torch.distributed as dist

    with contextlib.suppress(Exception):
        store.add(_LEFT, 1)
        until = time.monotonic() + _LINGER
        while ranks.first and store.add(_LEFT, 0) < ranks.size and time.monotonic() < until:
            time.sleep(0.02)
    with contextlib.suppress(Exception):
        dist.destroy_process_group()
