"""A recipe of ours as a contestant of benchmarks/quality.py and a row of benchmarks/ablations.py.

    python benchmarks/quality_ours.py '{"out": ..., "recipe": "benchmarks/recipes/causal.yaml", "seconds": 1200, ...}'

It is trained by the loop that `nalanda train` uses, with its data loader, logs and checkpoints. A budget in
minutes covers compilation: what that took is booked before the first step. `steps` in the place of `seconds`
makes runs of equal tokens.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import quality_common as common
import torch

from nalanda.base import seeds
from nalanda.config import load_yaml, override, parse
from nalanda.data.batch import Batch
from nalanda.stages.stage import Context
from nalanda.stages.train import TrainStage, prepare
from nalanda.train.hooks import Hook, Moment, evaluate
from nalanda.train.loop import Trainer, fit


class Held:
    """Held-out rows as a source that is evaluated on."""

    def __init__(self, held: common.HeldOut, rows: int) -> None:
        self.held, self.rows = held, rows

    def epoch(self) -> Iterator[Batch]:
        """All rows, a batch of equal shape at a time."""
        for part in self.held.parts(self.rows):
            yield Batch(
                ids=part["ids"],
                segments=part["segments"].int(),
                positions=part["positions"].int(),
                targets=part["targets"],
                target_weight=part["weight"].float(),
            )


class Scored(Hook):
    """Writes the curve: every so many seconds of training, and at the end."""

    name = "scored"

    def __init__(self, curve: common.Curve, job: str, held: common.HeldOut, config: TrainStage) -> None:
        self.curve, self.job, self.config = curve, job, config
        data: Any = config.data
        self.source = Held(held, max(1, data.micro // held.arrays["ids"].shape[1]))
        self.held, self.seconds = held, 0.0

    def logged(self, row: dict[str, Any]) -> None:
        """Reads the clock."""
        self.seconds = row.get("seconds", self.seconds)

    def after_step(self, moment: Moment) -> None:
        """A point where one is due."""
        if not (self.curve.due(self.seconds) or moment.last):
            return
        with moment.weights():
            values = evaluate(
                moment.model,
                self.config.objective,
                self.source,
                device=moment.device,
                precision=moment.precision,
            )
        score = values["nll"]
        if self.job == "causal":
            score *= float(self.held.arrays["weight"].sum()) / math.log(2) / self.held.bytes
        self.curve.add(self.seconds, score, steps=moment.step)


def count_compilation() -> None:
    """From now on a run's first compilation is part of its minutes."""
    warm_up = Trainer._warm_up

    def counted(self: Trainer) -> None:
        began = time.perf_counter()
        warm_up(self)
        if self.budget.step == 0:
            self.budget.seconds += time.perf_counter() - began

    Trainer._warm_up = counted  # type: ignore[method-assign]


def recipe(spec: dict[str, Any]) -> TrainStage:
    """The stage that a spec describes: a recipe's, with data, budget, seed and changes in their places."""
    budget = {"steps": spec["steps"]} if "steps" in spec else {"minutes": spec["seconds"] / 60}
    changes = [
        f"data.corpus={spec['corpus']}",
        f"data.tokenizer={spec['tokenizer']}",
        f"budget={json.dumps(budget)}",
        f"seed={spec['seed']}",
        "evaluation=null",
        *spec.get("changes", []),
    ]
    return parse(TrainStage, override(load_yaml(Path(spec["recipe"])), changes), origin=spec["recipe"])


def run(spec: dict[str, Any]) -> None:
    """Trains as the spec says and writes the curve to `out`."""
    config = recipe(spec)
    out = Path(spec["out"])
    curve = common.Curve(
        out, spec["every"], contestant=spec["name"], seed=spec["seed"], settings=config.to_dict()
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    count_compilation()
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        # The stores are made once for all seeds and recipes that read alike.
        place = Path(spec["arrays"]).parent / "stores" / spec["job"]
        place.mkdir(parents=True, exist_ok=True)
        _, source, _, model, _ = prepare(config, place, Context())
        hooks: list[Hook] = []
        if spec["job"] == "translation":
            from quality_translation import Translated

            hooks.append(Translated(curve, Path(spec["arrays"]), config))
        else:
            held = common.HeldOut(Path(spec["arrays"]) / f"{spec['job']}.npz")
            hooks.append(Scored(curve, spec["job"], held, config))
        torch.manual_seed(seeds.derive(config.seed, "run"))
        result = fit(model, config.objective, source, config, Path(folder), hooks=hooks)
    curve.finish(
        steps=result["steps"],
        tokens=result["tokens"],
        parameters=result["parameters"],
        threads=result["threads"],
        precision=result["precision"],
        compiled=result["compiled"],
        seconds=result["training_seconds"],
        notes=result["notes"],
    )


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
