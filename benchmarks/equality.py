"""Does every way of sharing a training among processes learn what one process learns? One row for each way.

    OMP_NUM_THREADS=1 python benchmarks/equality.py      # prints the table of benchmarks/results/DATE_equality.md

100 steps in fp32 on gloo, each way beside one process on the same batches: the largest relative difference of a
logged loss, and that of all weights at the end, by their norm. The models and batches are those of the tests.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from processes import together
from small_runs import Trained, Work, largest_difference, trained

STEPS = 100
SIZE = {"layers": 2, "hidden": 32, "heads": 8, "kv_heads": 4, "inner": 64}
MOE = {"moe": {"experts": 4, "top_k": 2, "inner": 64, "balance_bias": True}}


@dataclass(frozen=True)
class Way:
    """One row: the recipe's `parallel`, on how many processes, and what else is not as usual."""

    parallel: dict[str, Any]
    ranks: int
    model: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)
    micros: int = 4

    def work(self, parallel: dict[str, Any]) -> Work:
        loop = {"budget": {"steps": STEPS}, "clip": 0.5, **self.loop, "parallel": parallel}
        return Work(loop, {**SIZE, **self.model}, {"micros": self.micros, "width": 16})


MUON = {"optimizer": {"kind": "muon"}, "ema": {"decay": 0.99}}
EXACT = {"mode": "deterministic"}
WAYS = [
    *(
        Way(EXACT, ranks, loop=loop, micros=micros)
        for ranks in (2, 4)
        for loop in ({}, MUON)
        for micros in (4, 5)
    ),
    *(
        Way({"shard": shard}, ranks, loop=loop)
        for shard in (False, True)
        for ranks in (2, 4)
        for loop in ({}, MUON)
    ),
    Way({"shard": True, "checkpointing": "selective"}, 2),
    Way({"checkpointing": "full"}, 1),
    Way({"tensor": 2}, 2),
    Way({"tensor": 4}, 4, loop=MUON),
    Way({"data": 2, "tensor": 2, "shard": True}, 4, loop=MUON),
    Way({"context": 2}, 2),
    Way({"context": 4}, 4, {"window": 9}),
    Way({"data": 2, "context": 2, "shard": True}, 4),
    Way({"context": 2, "tensor": 2}, 4),
    Way({"expert": 2}, 2, MOE),
    Way({"expert": 4}, 4, MOE),
    Way({"data": 2, "expert": 2, "shard": True}, 4, MOE, MUON),
]


def row(way: Way, one: Trained) -> str:
    """A line of the table."""
    runs = (
        [trained(way.work(way.parallel))]
        if way.ranks == 1
        else together(way.ranks, trained, way.work(way.parallel))
    )
    if isinstance(runs[0], Exception):
        raise SystemExit(f"{way.parallel}: {runs}")
    losses, weights = largest_difference(one, runs[0])
    same = all(torch.equal(value, runs[0].weights[name]) for name, value in one.weights.items())
    parallel = ", ".join(f"{key} {value}" for key, value in way.parallel.items()) or "data"
    about = ", ".join(
        [*way.model, "Muon, averaged weights" if way.loop else "AdamW", f"{way.micros} micro-batches"]
    )
    bits = "yes" if same and runs[0].losses == one.losses else "no"
    return f"| {parallel} | {way.ranks} | {about} | {losses:.1e} | {weights:.1e} | {bits} |"


HEAD = (
    "| parallel | processes | model and optimizer | loss | weights | same bits |\n|---|---|---|---|---|---|"
)


def main() -> None:
    """Prints the table, a row as soon as it is measured."""
    torch.set_num_threads(1)
    known: dict[str, Trained] = {}
    say = partial(print, flush=True)
    say(HEAD)
    for way in WAYS:
        alone = way.work(EXACT if way.parallel == EXACT else {})
        if repr(alone) not in known:
            known[repr(alone)] = trained(alone)
        say(row(way, known[repr(alone)]))


if __name__ == "__main__":
    main()
