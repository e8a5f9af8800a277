"""Runs made to be killed. Started once as a process of its own, this imports torch and then forks a fresh process for
each line that it reads: a life costs milliseconds instead of the seconds of an import.

    python harness.py
    > {"folder": "/tmp/x", "kill_after": 0.2}        answered by {"status": -9, "seconds": 0.2}
    > {"folder": "/tmp/x"}                           answered by {"status": 0, "seconds": 1.7}

    loop: {...}         changes to LOOP, for the trainer of a tiny model that this file holds
    command: [...]      the real command line instead, what it says in `said`
    arm: {"mode": "k", "at": 7, "log": null}         faults at system calls: see shim.c, which must be preloaded

It must not compute before it forks: OpenMP's threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers import it in their first step: once here instead of in each life

import nalanda.stages.train
from nalanda import cli
from nalanda.base.errors import UserError
from nalanda.base.run import Run
from nalanda.base.seeds import derive
from nalanda.config import parse
from nalanda.data.batch import Batch
from nalanda.nn.model import Model
from nalanda.nn.rotary import RotarySpec
from nalanda.nn.spec import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    NormSpec,
    Spec,
    TokensHeadSpec,
)
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.config import LoopConfig
from nalanda.train.hooks import Evaluation, EvaluationConfig
from nalanda.train.loop import fit

VOCABULARY = 31
LOOP: dict[str, Any] = {
    "budget": {"steps": 100},
    "optimizer": {"kind": "muon", "lr": 0.01, "weight_decay": 0.1},
    "schedule": {"kind": "cosine", "warmup": 10},
    "ema": {"decay": 0.95},
    "checkpoint": {"every": 6, "keep": 2},
    "log_every": 3,
}


class Stream:
    """Sequences that count upwards by a step of their own; two micro-batches of different lengths."""

    fingerprint = "counting"
    steps_per_epoch = 10

    def step(self, step: int) -> list[Batch]:
        return [self._batch(3, 6 + (step + micro) % 4, derive(1, step, micro)) for micro in range(2)]

    def epoch(self) -> Iterator[Batch]:
        yield self._batch(4, 8, 5)

    def describe(self) -> dict[str, Any]:
        return {}

    def _batch(self, rows: int, width: int, seed: int) -> Batch:
        draw = torch.Generator().manual_seed(seed)
        first, stride = (torch.randint(1, VOCABULARY, (rows, 1), generator=draw) for _ in range(2))
        tokens = (first + stride * torch.arange(width + 1)) % VOCABULARY
        return Batch(
            ids=tokens[:, :-1].contiguous(),
            segments=torch.ones(rows, width, dtype=torch.int32),
            positions=torch.arange(width, dtype=torch.int32).repeat(rows, 1),
            targets=tokens[:, 1:].contiguous(),
            target_weight=torch.ones(rows, width),
            sample_ids=torch.arange(rows),
        )


def build_model() -> Model:
    torch.manual_seed(0)
    block = BlockSpec(
        attention=AttentionSpec(heads=2, rotary=RotarySpec()),
        feedforward=FeedForwardSpec(inner=32),
        norm=NormSpec(),
        dropout=0.1,
    )
    spec = Spec(vocabulary=VOCABULARY, hidden=16, decoder=(block,))
    return Model(spec, {"tokens": TokensHeadSpec()})


def train(folder: Path, changes: dict[str, Any]) -> None:
    """What `nalanda train` does, on the smallest model."""
    torch.set_num_threads(1)
    values = {**LOOP, **changes}
    loop, source, objective = parse(LoopConfig, values, "harness"), Stream(), TokensConfig()
    with Run.open(folder, values, {"data": source.fingerprint}, format=1) as run:
        if run.done:
            return
        hooks = [Evaluation(EvaluationConfig(every=20, keep_best=False), source, objective)]
        model = build_model()
        result = fit(
            model,
            objective,
            source,
            loop,
            folder,
            hooks=hooks,
            log=run.log,
            rewind=run.rewind_metrics,
            mark=run.journal.mark,
            verify=run.check_metrics,
            device="cpu",
        )
        weights = {name: value.flatten().tolist() for name, value in model.state_dict().items()}
        run.finish({**result, "weights": weights})


def child(order: dict[str, Any]) -> int:
    """Runs, and gives the exit code that the command line would."""
    if arm := order.get("arm"):
        shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
        log = os.fsencode(arm["log"]) if arm.get("log") else None
        root = os.fsencode(arm.get("root") or order["folder"])
        shim.faults_arm(root, ord(arm["mode"]), ctypes.c_long(arm.get("at", 0)), log)
    with Path(order.get("said") or os.devnull).open("a") as said:
        if "command" in order:
            torch.set_num_threads(1)
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    cli.main(order["command"])
                except SystemExit as stop:
                    return int(stop.code or 0)
            return 0
        try:
            train(Path(order["folder"]), order.get("loop", {}))
        except UserError as error:
            said.write(f"{error}\n")
            return error.exit_code
    return 0


def live(order: dict[str, Any]) -> dict[str, Any]:
    """One life, ended by itself or by a signal after `kill_after` seconds."""
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = child(order)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    if order.get("kill_after") is not None:
        time.sleep(order["kill_after"])
        os.kill(pid, order.get("signal", signal.SIGKILL))
    _, status = os.waitpid(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    assert nalanda.stages.train  # imported once, here, and not in each life
    for line in sys.stdin:
        print(json.dumps(live(json.loads(line))), flush=True)  # noqa: T201
