"""Two cores, two lanes: a micro-batch's rows are shared out to threads that each compute on one core.

    with Lanes(lanes_for(model, device, compiled=False)) as lanes:
        for result in lanes.run(work, split(batch, lanes.count)): ...

A small model's operations are too short to be worth cutting in two: with two threads inside every operation they meet
at a barrier every few microseconds, and on a busy machine each barrier waits for the slower one. A lane runs a
whole forward and backward pass alone. Results come back in the order of the parts, so sums are the same every time.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TypeVar

import torch
from torch import nn

from nalanda.data.batch import Batch, tensors

Part = TypeVar("Part")
Result = TypeVar("Result")


def lanes_for(model: nn.Module, device: torch.device, compiled: bool) -> int:
    """How many lanes pay: one for each CPU thread, where the model draws no random numbers (lanes would race for
    them) and runs as written (compiled code is not safe in several threads)."""
    if device.type != "cpu" or compiled or _draws(model):
        return 1
    return torch.get_num_threads()


def _draws(model: nn.Module) -> bool:
    values = [getattr(m, name, 0.0) for m in model.modules() for name in ("probability", "dropout", "p")]
    return any(isinstance(value, float) and value > 0 for value in values)


def split(batch: Batch, count: int) -> list[Batch]:
    """The batch's rows in `count` parts of nearly equal size; fewer where there are fewer rows."""
    rows = batch["ids"].shape[0]
    count = min(count, rows)
    bounds = [rows * i // count for i in range(count + 1)]
    return [
        Batch(**{key: value[low:high] for key, value in tensors(batch)})  # type: ignore[typeddict-item]
        for low, high in itertools.pairwise(bounds)
    ]


def _results(futures: Sequence[Future[Result]]) -> Iterator[Result]:
    """What the lanes gave, in their order. After an error no lane is at work any more: the step may be done again."""
    try:
        for future in futures:
            yield future.result()
    except BaseException:
        wait(futures)
        raise


class Lanes:
    """`count` threads, each with one core inside operations; with `count` 1, the calling thread alone."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        self.threads = torch.get_num_threads()

    def __enter__(self) -> Lanes:
        if self.count > 1:
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="lane")
        return self

    def run(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> Iterator[Result]:
        """`work` of each part, in the parts' order; an error in a lane is raised here."""
        if self._pool is None or len(parts) == 1:
            return map(work, parts)
        futures = [self._pool.submit(work, part) for part in parts]
        return _results(futures)

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Inside, operations have all cores again: for work between steps, which runs in the calling thread."""
        if self._pool is None:
            yield
            return
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self.threads)
