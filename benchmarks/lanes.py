"""Lanes against threads inside operations: one optimizer step's forward and backward passes on all cores of a CPU.

    python benchmarks/lanes.py            # prints a table: model, tokens/s of both, median ratio and its range

The two take turns, step by step, on the same batches of random tokens; a ratio is of two neighbouring steps.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from nalanda.base import machine
from nalanda.data.batch import Batch
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.lanes import Lanes
from nalanda.train.step import accumulate

VOCABULARY, ROWS, LENGTH, TURNS = 1200, 130, 12, 12


def batch() -> Batch:
    """One batch of an encoder-decoder: short rows, as names and phrases are."""
    values = {}
    for prefix in ("", "source_"):
        values[f"{prefix}ids"] = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
        values[f"{prefix}segments"] = torch.ones(ROWS, LENGTH, dtype=torch.int32)
        values[f"{prefix}positions"] = (
            torch.arange(LENGTH, dtype=torch.int32).expand(ROWS, LENGTH).contiguous()
        )
    values["targets"] = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    values["target_weight"] = torch.ones(ROWS, LENGTH)
    return Batch(**values)  # type: ignore[typeddict-item]


def step_seconds(model: Model, lanes: Lanes, data: Batch) -> float:
    """Seconds of one forward and backward pass."""
    model.zero_grad()
    began = time.perf_counter()
    accumulate(
        model,
        TokensConfig(),
        [data],
        seed=0,
        step=0,
        precision="fp32",
        device=torch.device("cpu"),
        lanes=lanes,
    )
    return time.perf_counter() - began


def compare(layers: int, hidden: int) -> str:
    """One row of the table."""
    config = ModelConfig(layers=layers, hidden=hidden, heads=4, norm="rms", activation="relu")
    model = Model(build_spec(config, VOCABULARY), {"tokens": TokensHeadSpec()}).train()
    data, cores = batch(), machine.cores()
    times: dict[int, list[float]] = {1: [], cores: []}
    for turn in range(TURNS + 2):
        for count in (1, cores) if turn % 2 else (cores, 1):
            torch.set_num_threads(cores)
            with Lanes(count) as lanes:
                step_seconds(model, lanes, data)  # threads start here
                seconds = step_seconds(model, lanes, data)
            if turn >= 2:
                times[count].append(seconds)
    ratios = sorted(one / many for one, many in zip(times[1], times[cores]))
    tokens = 2 * ROWS * LENGTH
    inside, apart = (tokens / statistics.median(times[count]) for count in (1, cores))
    return (
        f"| {layers}+{layers} x {hidden} | {inside:,.0f} | {apart:,.0f} "
        f"| {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |"
    )


def main() -> None:
    """Prints the table."""
    facts = machine.environment()
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, torch {facts['packages']['torch']}",
        "",
        "| model | threads inside operations, tokens/s | lanes, tokens/s | median ratio | range |",
        "| --- | --- | --- | --- | --- |",
        *[compare(layers, hidden) for layers, hidden in ((2, 128), (2, 160), (3, 192), (4, 256))],
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
