"""What a checkpoint costs: written in training's way, and beside it by a thread.

    python benchmarks/checkpoint.py [SECONDS] [ROUNDS] [THREADS]

Prints a table. Windows of SECONDS of training (default 20) take turns: without a checkpoint, with one written in its
way, without, with one beside. `blocked` is what the loop waits in `save`. `work` is the processor time of all threads
that a window takes more than as many steps in the windows without around it: what is lost to the thread that hashes
and writes on the same cores. `wall clock` is the same by the clock on the wall, on a busy machine mostly noise.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from nalanda.base import machine
from nalanda.data.batch import Batch
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.checkpoint import CheckpointConfig, Checkpoints, Snapshot, bytes_of, weights_of
from nalanda.train.optimizer import AdamWConfig, Optimizer
from nalanda.train.step import accumulate
from nalanda.train.writer import Writer

VOCABULARY = 16_384
SHAPES = {"10 M": (4, 256, 4, 256), "100 M": (12, 768, 1, 64)}
"""Layers, width, rows, tokens of a row."""


class Training:
    """A decoder with AdamW, on one batch of random tokens."""

    def __init__(self, layers: int, hidden: int, rows: int, tokens: int, folder: Path) -> None:
        torch.manual_seed(0)
        config = ModelConfig(
            kind="decoder", layers=layers, hidden=hidden, heads=hidden // 64, max_length=tokens
        )
        self.model = Model(build_spec(config, VOCABULARY), {"tokens": TokensHeadSpec()})
        self.optimizer = Optimizer(AdamWConfig(), self.model)
        ids = torch.randint(0, VOCABULARY, (rows, tokens))
        places = torch.arange(tokens, dtype=torch.int32).repeat(rows, 1)
        ones = torch.ones(rows, tokens)
        self.batch = Batch(
            ids=ids,
            segments=ones.to(torch.int32),
            positions=places,
            targets=ids.roll(-1, 1),
            target_weight=ones,
        )
        self.store, self.number = folder, 0

    def step(self) -> float:
        """One optimizer step; its seconds."""
        began = time.perf_counter()
        accumulate(
            self.model,
            TokensConfig(),
            [self.batch],
            seed=0,
            step=0,
            precision="fp32",
            device=torch.device("cpu"),
        )
        self.optimizer.step(1.0)
        self.optimizer.zero_grad()
        return time.perf_counter() - began

    def snapshot(self) -> Snapshot:
        """What a checkpoint holds."""
        self.number += 1
        weights, ties = weights_of(self.model)
        return Snapshot(self.number, weights, self.optimizer.state(), {}, {}, ties)

    def window(self, seconds: float, writer: Writer | None) -> Window:
        """Steps for `seconds`, a checkpoint at their beginning where there is a writer."""
        found = Window()
        began, worked = time.perf_counter(), time.process_time()
        if writer is not None:
            writer.save(self.snapshot())
            found.blocked = time.perf_counter() - began
        while time.perf_counter() < began + seconds or found.steps < 3:
            self.step()
            found.steps += 1
            if (
                writer is not None
                and not found.written
                and (writer._thread is None or not writer._thread.is_alive())
            ):
                found.written = time.perf_counter() - began
        found.wall = time.perf_counter() - began
        if writer is not None:
            writer.wait()
        found.work = time.process_time() - worked
        return found


@dataclass
class Window:
    """What some seconds of training were: its steps, their wall clock and all threads' work, the save's part."""

    steps: int = 0
    wall: float = 0.0
    work: float = 0.0
    blocked: float = 0.0
    written: float = 0.0


def measure(name: str, seconds: float, rounds: int, threads: int) -> list[str]:
    """The table's rows for one model."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        training = Training(*SHAPES[name], Path(place))
        for _ in range(3):
            training.step()
        size = bytes_of(training.snapshot())
        writers = {
            way: Writer(
                Checkpoints(Path(place) / way, CheckpointConfig(keep=1, asynchronous=way == "beside"))
            )
            for way in ("in its way", "beside")
        }
        writers["beside"].save(training.snapshot())  # the buffers are made once in a run
        writers["beside"].wait()
        found: dict[str, list[tuple[float, ...]]] = {way: [] for way in writers}
        before = training.window(seconds, None)
        for _ in range(rounds):
            for way, writer in writers.items():
                window = training.window(seconds, writer)
                after = training.window(seconds, None)
                wall, work = (
                    (getattr(before, key) / before.steps + getattr(after, key) / after.steps)
                    / 2
                    * window.steps
                    for key in ("wall", "work")
                )
                found[way].append((window.blocked, window.written, window.wall - wall, window.work - work))
                before = after
        for way, values in found.items():
            blocked, written, wall, work = (statistics.median(column) for column in zip(*values, strict=True))
            low, high = min(value[2] for value in values), max(value[2] for value in values)
            rows.append(
                f"| {name} | {size / 2**20:.0f} MiB | {way} | {blocked:.3f} s | {written:.2f} s | {work:.2f} s | "
                f"{wall:.2f} s ({low:.2f} to {high:.2f}) | {blocked / 60:.2%} | {work / threads / 60:.2%} |"
            )
    return rows


def main(seconds: float = 20.0, rounds: int = 3, threads: int = 2) -> Iterator[str]:
    """The table, line by line as it is measured."""
    torch.set_num_threads(threads)
    values = machine.environment()
    yield f"{values['cpu']}, {values['cores']} cores, {threads} threads, torch {torch.__version__}, "
    yield f"windows of {seconds:g} s, {rounds} rounds\n"
    columns = ["parameters", "size", "written", "blocked", "until on disk", "work", "wall clock"]
    yield "| " + " | ".join([*columns, "blocked / 60 s", "work / all threads' 60 s"]) + " |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for name in SHAPES:
        yield from measure(name, seconds, rounds, threads)


if __name__ == "__main__":
    arguments = [float(word) for word in sys.argv[1:]]
    for line in main(*arguments[:1], *map(int, arguments[1:])):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
