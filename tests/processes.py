"""Several processes in a test, joined by gloo as torchrun would join them.

    results = together(2, training, "fast")        # training("fast") on two ranks; what each returned

A case is a function of an importable module (tests/small_runs.py); the processes are forked from a server that has
imported torch once, so that starting them costs little.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from nalanda.base.distributed import joined
from nalanda.base.errors import UserError

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "nalanda.train.loop",
        "nalanda.models.plain",
        "nalanda.objectives.experts",
        "torch._dynamo",
        "torch.distributed.fsdp",
    ]
)


class Ended(Exception):
    """A rank that ended with an error: its exit code, and its line where it was the one to speak."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(code, line)
        self.code, self.line = code, line


def together(
    size: int, case: Callable[..., Any], *values: Any, seconds: float = 120, gpu: bool = False
) -> list[Any]:
    """What `case(*values)` returned on each of `size` ranks; an `Ended` where a rank failed. Without `gpu`, ranks see
    none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [_context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        _context.Process(target=_rank, args=(rank, size, port, gpu, pipes[rank][1], case, values))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    results = []
    try:
        for rank, (receiver, _) in enumerate(pipes):
            assert receiver.poll(seconds), f"rank {rank} of {size} hangs"
            results.append(pickle.loads(receiver.recv_bytes()))
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


def _rank(
    rank: int, size: int, port: int, gpu: bool, sender: Connection, case: Callable[..., Any], values: Any
) -> None:
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_PORT": port,
        "MASTER_ADDR": "127.0.0.1",
    }
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    result: Any = None
    try:
        with contextlib.suppress(KeyboardInterrupt), joined():
            result = case(*values)
    except UserError as error:
        result = Ended(error.exit_code, str(error))
    except SystemExit as error:
        result = Ended(int(error.code or 0), "")
    except BaseException as error:
        result = Ended(1, f"{type(error).__name__}: {error}")
    sender.send_bytes(
        pickle.dumps(result)
    )  # by value: torch's own way would share memory with a process that ends
