"""The process that measures steps for calibrate.py, so that its peak memory is theirs alone.

    python -m nalanda.stages.calibrate_steps JOB.json RESULT.json

A job is a network, a training config and lengths of rows; steps are the real loop's, on the real data where they are
here and small, else on made-up tokens.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nalanda.base import io, machine
from nalanda.data.batch import Batch
from nalanda.data.source import Source
from nalanda.data.synthetic import synthetic
from nalanda.generate.prompting import Prompting
from nalanda.models.own import HEADS
from nalanda.nn.model import Model
from nalanda.nn.spec import Spec
from nalanda.stages.experts import balance_hooks
from nalanda.stages.stage import Context
from nalanda.stages.starting import data_tokenizer
from nalanda.stages.train import TrainStage, data_seed, sources
from nalanda.train.checkpoint import CheckpointConfig
from nalanda.train.compile import decide
from nalanda.train.device import default_device
from nalanda.train.hooks import Evaluation, Hook, Moment
from nalanda.train.loop import fit
from nalanda.train.schedule import BudgetConfig, ScheduleConfig

WARM = 3
"""Steps that are not counted."""
_MOST = 100_000


class _LargestFirst:
    """Another source's steps, the one with the longest rows among its first before all: memory's peak is there."""

    def __init__(self, source: Source, looked: int = 32) -> None:
        self.source, self.fingerprint, self.steps_per_epoch = (
            source,
            source.fingerprint,
            source.steps_per_epoch,
        )
        self.epoch, self.describe = source.epoch, source.describe
        wanted = [max(map(_demand, source.step(step))) for step in range(min(looked, source.steps_per_epoch))]
        self.largest = int(np.argmax(wanted))

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        return self.source.step(self.largest if step == 0 else step - 1)


def _demand(batch: Batch) -> int:
    """Grows with the memory that a micro-batch takes: its places, and its pairs of places for attention."""
    widths = [batch["ids"].shape[1], batch["source_ids"].shape[1] if "source_ids" in batch else 0]
    return batch["ids"].shape[0] * sum(widths) * max(widths)


class _Turns:
    """Steps of one micro-batch, of two, and of one twice as large, in turn."""

    def __init__(self, small: Source, large: Source) -> None:
        self.small, self.large, self.fingerprint = small, large, small.fingerprint
        self.steps_per_epoch, self.epoch, self.describe = small.steps_per_epoch, small.epoch, small.describe

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        if step % 3 == 2:
            return self.large.step(step)[:1]
        return [self.small.step(step + more)[0] for more in range(1 + step % 3)]


class _Stop(Hook):
    """Ends training when its time is over; the first steps warm up and are not counted."""

    name = "stop"

    def __init__(self, seconds: float, least: int) -> None:
        self.seconds, self.least, self.until = seconds, least, float("inf")

    def after_step(self, moment: Moment) -> None:
        """Asks to stop."""
        if moment.step == WARM:
            self.until = time.perf_counter() + self.seconds
        if moment.step >= self.least and time.perf_counter() >= self.until:
            moment.stop = "measured"


class _Once(Evaluation):
    """One evaluation among the steps that are not counted: it and the weights that it keeps belong to the peak."""

    def after_step(self, moment: Moment) -> None:
        """Evaluates after the second step."""
        if moment.step == WARM - 1:
            super().after_step(moment)


def resized(config: TrainStage, factor: float) -> TrainStage:
    """The same with steps of one micro-batch that has `factor` times the places; never less than its longest row."""
    values = config.to_dict()
    for part in values["data"].get("parts", [values["data"]]):
        longest = part["max_length"] * (2 if part["kind"] in ("pairs", "denoise") else 1)
        micro = part["micro_batch_tokens"] or part["batch_tokens"]
        part["batch_tokens"] = part["micro_batch_tokens"] = max(min(longest, micro), round(micro * factor))
    return TrainStage.model_validate(values)


def measure(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a process of `_child` does."""
    config = TrainStage.model_validate(job["config"])
    if config.threads:
        torch.set_num_threads(config.threads)
    device = default_device()
    torch.manual_seed(config.seed)
    model = Model(Spec.model_validate(job["spec"]), HEADS.validate_python(job["heads"]))
    machine.reset_peak_memory()
    source, dev = _sources(job, config, model, folder)
    base = machine.peak_memory()
    compile_now = decide(config.compile, device, config.budget).compiled
    short = config.model_copy(
        update={
            "budget": BudgetConfig(steps=_MOST),
            "schedule": ScheduleConfig(kind="constant", warmup=0.0),
            "checkpoint": CheckpointConfig(every=_MOST),
            "log_every": 1,
            "compile": "on" if compile_now else "off",
        }
    )
    rows: list[dict[str, Any]] = []
    hooks: list[Hook] = [
        _Stop(job["seconds"], WARM + (6 if job["turns"] else 2)),
        *balance_hooks(config.objective),
    ]
    if config.evaluation is not None:  # it keeps the best weights
        once = config.evaluation.model_copy(update={"every": WARM - 1, "batches": 1, "patience": None})
        hooks.append(_Once(once, dev, config.objective))
    ended: list[tuple[float, float]] = []

    def log(row: dict[str, Any]) -> None:
        if "seconds" in row:
            rows.append(row)
            ended.append((time.perf_counter(), time.process_time()))

    began = time.process_time()
    result = fit(model, config.objective, source, short, folder, hooks=hooks, log=log)
    after = time.perf_counter() - ended[-1][0]
    cuda = device.type == "cuda"
    return {
        "seconds": np.diff([0.0, *(row["seconds"] for row in rows)]).tolist(),
        "cpu": np.diff([began, *(spent for _, spent in ended)]).tolist(),
        "threads": torch.get_num_threads(),
        "after": after,
        "base": 0.0 if cuda else float(base),
        "peak": float(torch.cuda.max_memory_reserved() if cuda else machine.peak_memory()),
        "device": device.type,
        "precision": result["precision"],
    }


def _sources(job: dict[str, Any], config: TrainStage, model: Model, folder: Path) -> tuple[Source, Source]:
    """The source to step through and one to evaluate on: the real ones where the job says that they are here."""
    if job["real"]:
        tokenizer = data_tokenizer(config)
        train, dev = sources(config, folder, tokenizer, Context(), Prompting(tokenizer, model.spec))
        if not job["turns"]:
            return _LargestFirst(train), dev or train
    lengths = {key: np.array(value, dtype=np.int64) for key, value in job["lengths"].items()}
    small = synthetic(config.data, model.spec.vocabulary, lengths, data_seed(config))
    if not job["turns"]:
        return _LargestFirst(small), small
    large = synthetic(resized(config, 2.0).data, model.spec.vocabulary, lengths, data_seed(config))
    return _Turns(small, large), small


if __name__ == "__main__":
    target = Path(sys.argv[2])
    io.write_json(target, measure(io.read_json(Path(sys.argv[1])), target.parent))
