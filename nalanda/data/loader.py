"""Prepares the batches of coming steps while the model works on the present one.

    with Loader(source, start_step=500, workers=1) as loader:
        for step, batches in loader:
            ...

The order never depends on the number of workers, because a step is a pure function of its number. Workers are
threads: a step costs a few milliseconds of numpy, so sending it between processes would cost more than making it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from nalanda.data.batch import Batch
from nalanda.data.source import Source


class Loader:
    """Iterates (step, micro-batches) from `start_step` on, endlessly or up to (not including) `stop_step`.

    `workers=0` makes each step when it is asked for. An error in a worker is raised, unchanged, when its step's
    turn comes. Leaving the `with` block, by whatever way, cancels what is not begun and joins the threads.
    """

    def __init__(
        self,
        source: Source,
        start_step: int = 0,
        workers: int = 1,
        depth: int = 4,
        stop_step: int | None = None,
    ) -> None:
        if workers < 0 or depth < 1 or start_step < 0:
            raise ValueError("workers and start_step must be at least 0 and depth at least 1")
        self.source, self.depth, self.stop_step = source, depth, stop_step
        self._next = start_step
        self._waiting: deque[tuple[int, Future[list[Batch]]]] = deque()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader") if workers else None
        self._closed = False

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        return self

    def __next__(self) -> tuple[int, list[Batch]]:
        if self._closed:
            raise StopIteration
        if self._pool is None:
            if self._at_end():
                raise StopIteration
            step, self._next = self._next, self._next + 1
            try:
                return step, self.source.step(step)
            except BaseException:
                self.close()
                raise
        while len(self._waiting) < self.depth and not self._at_end():
            self._waiting.append((self._next, self._pool.submit(self.source.step, self._next)))
            self._next += 1
        if not self._waiting:
            self.close()
            raise StopIteration
        step, future = self._waiting.popleft()
        try:
            return step, future.result()
        except BaseException:
            self.close()
            raise

    def seek(self, step: int) -> None:
        """Goes on with `step`; what was prepared of others is forgotten."""
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._next = step

    def _at_end(self) -> bool:
        return self.stop_step is not None and self._next >= self.stop_step

    def close(self) -> None:
        """Cancels what is not begun and waits for the threads; may be called twice."""
        self._closed = True
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
