"""How fast this machine trains a recipe's model, measured now: real steps of the real loop on made-up tokens.

    measured = calibrate(work, seconds=20)          # Measured(step=0.21, peak=1.4e9, ...)

Steps are run in a process of their own, so that its peak memory is theirs alone. A model that is small enough is
measured whole, in the very steps that the run would make. Of a larger one two shallow copies are measured: as wide,
with a few of its layers, on fewer rows where even that is long, in steps of one micro-batch, of two, and of one twice
as large. From their differences follow the time of a place, a micro-batch and an update, with depth, and with the
arithmetic of plan_memory.py and `flops_per_place` the whole.

On CPUs steps are compared by CPU seconds, which other programs disturb less, and told in seconds of the clock at the
rate that the measurement saw.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import nalanda
from nalanda.base import io
from nalanda.base.errors import RunError
from nalanda.base.progress import unsaid
from nalanda.models.reading import build_empty
from nalanda.nn.model import Model
from nalanda.nn.spec import Spec
from nalanda.objectives.cross_entropy import rows_per_block, rows_per_chunk
from nalanda.stages.calibrate_steps import WARM, resized
from nalanda.stages.plan_work import Work, flops_per_place, shape_of
from nalanda.stages.train import TrainStage
from nalanda.train.device import default_device
from nalanda.train.plan_memory import MODES, Memory, Rows, Sizes, step_memory
from nalanda.train.precision import has_bf16, resolve

_SLACK = 2.5
"""So many times the time of its products a step takes, at a guess."""
_READ = 50_000
"""A corpus of so many rows is read whole."""


@dataclass(frozen=True)
class Measured:
    """Seconds of an optimizer step, CPU seconds of one, seconds of the first one beyond that, of a forward pass of a
    micro-batch, of a checkpoint; the share of its threads' time that the machine gave; peak bytes of the process and
    those it has before training; products' FLOPs a second by type; how it was found."""

    step: float
    cpu: float
    share: float
    first: float
    forward: float
    checkpoint: float
    peak: float
    base: float
    rates: dict[str, float]
    precision: str
    device: str
    how: str


def rates(work: Work, seconds: float = 0.2) -> dict[str, float]:
    """FLOPs a second (on CPUs: a CPU second of a thread) of products at the model's own shapes, by type."""
    device, hidden = default_device(), work.model.spec.hidden
    places = min(4096, max(1, round(work.shape.micro.places)))
    wide = max(
        [4 * hidden, *(w.shape[0] for n, w in work.model.named_parameters() if n.endswith("input.weight"))]
    )
    found = {}
    kinds = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if has_bf16(device) else {})
    for name, kind in kinds.items():
        x, w = (torch.ones(n, hidden, dtype=kind, device=device) for n in (places, wide))
        F.linear(x, w)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        count, began = 0, clock()
        while (spent := clock() - began) < seconds:
            F.linear(x, w)
            if device.type == "cuda":
                torch.cuda.synchronize()
            count += 1
        found[name] = 2.0 * places * hidden * wide * count / spent
    return found


def held_logits(work: Work, vocabulary: int, device: str) -> tuple[int, int]:
    """Rows of logits, and of their gradients, that the cross-entropy holds at once."""
    place = torch.device(device)
    chunk = getattr(work.config.objective, "chunk", None) or rows_per_chunk(vocabulary, place)
    return chunk, rows_per_block(vocabulary, chunk, place)


def arithmetic(
    work: Work, model: Model, rows: Rows, micro_batches: int, precision: str, device: str
) -> Memory:
    """What plan_memory.py says of a training process's tensors."""
    config = work.config
    chunk, block = held_logits(work, model.spec.vocabulary, device)
    return step_memory(
        model.spec,
        Sizes.of(model),
        rows,
        MODES[precision],
        config.optimizer,
        device=device,
        chunk=chunk,
        block=block,
        micro_batches=micro_batches,
        average=config.ema is not None,
    )


def calibrate(work: Work, seconds: float, available: float, note: Callable[[str], None] = unsaid) -> Measured:
    """Measures for about `seconds` in all; `available`: bytes that may be taken. Raises RunError where not even a
    sliver of the model runs."""
    device = default_device()
    precision = resolve(work.config.precision, device)
    found = rates(work)
    rate = found.get(precision, found["fp32"])
    per_place = flops_per_place(work.model, work.shape.step)
    whole = _SLACK * per_place * work.shape.places / rate
    needed = arithmetic(
        work, work.model, work.shape.micro, round(work.shape.micro_batches), precision, device.type
    ).peak
    if (WARM + 3) * whole <= seconds and needed < 0.8 * available:
        note(f"{work.name}: measuring the model itself for about {seconds:.0f} s")
        result = _child(work, work.model.spec, work.config, seconds, turns=False)
        return _whole(result, found, work)
    return _from_parts(work, seconds, available, found, rate, precision, note)


def _whole(result: dict[str, Any], found: dict[str, float], work: Work) -> Measured:
    steps, first = result["seconds"][WARM:], result["seconds"][:WARM]
    step = float(np.mean(steps))
    return Measured(
        step=step,
        cpu=float(np.mean(result["cpu"][WARM:])),
        share=_share(result),
        first=max(0.0, sum(first) - WARM * step),
        forward=step / work.shape.micro_batches / 3,
        checkpoint=result["after"],
        peak=result["peak"],
        base=result["base"],
        rates=found,
        precision=result["precision"],
        device=result["device"],
        how=f"{len(steps)} steps of the model itself",
    )


def _share(result: dict[str, Any]) -> float:
    """CPU seconds for each second of each thread."""
    return float(min(1.0, sum(result["cpu"][WARM:]) / sum(result["seconds"][WARM:]) / result["threads"]))


def shallow(spec: Spec, layers: int) -> Spec:
    """The network with the first `layers` of each stack."""
    return spec.model_copy(update={"encoder": spec.encoder[:layers], "decoder": spec.decoder[:layers]})


def period(spec: Spec) -> int:
    """After how many layers a stack repeats itself."""
    stacks = [blocks for _, blocks, _ in spec.stacks()]
    most = max(len(blocks) for blocks in stacks)
    return next(
        (p for p in range(1, most) if all(blocks[p:] == blocks[:-p] for blocks in stacks if len(blocks) > p)),
        1,
    )


def _from_parts(
    work: Work,
    seconds: float,
    available: float,
    found: dict[str, float],
    rate: float,
    precision: str,
    note: Callable[[str], None],
) -> Measured:
    spec, device, repeat = work.model.spec, default_device().type, period(work.model.spec)
    heads = work.model.head_specs
    one = build_empty(shallow(spec, repeat), heads)
    # A copy runs nine steps, of five micro-batches' work in three.
    affordable = seconds / 2 / 15 / _SLACK * rate / flops_per_place(one, work.shape.micro)
    config = resized(work.config, min(1.0, affordable / work.shape.micro.places))
    most, depths = max(len(spec.encoder), len(spec.decoder)), [repeat]
    rows = shape_of(config, spec.vocabulary, work.lengths).micro
    for layers in range(min(2 * repeat, most), min(most, 8 * repeat) + 1, repeat):
        copy = build_empty(shallow(spec, layers), heads)
        cost = 15 * _SLACK * flops_per_place(copy, rows) * rows.places / rate
        if layers > 2 * repeat and cost > 2 * seconds / 3:
            break
        if _of_turns(work, copy, rows, precision, device) > 0.8 * available:
            break
        depths = [repeat, layers]
    if len(depths) < 2:
        raise RunError(
            f"{work.name}: {depths[0] + repeat} layers of this model need more than the {available / 1e9:.1f} GB "
            "that are free here; free some, or plan for a machine of the table (--hardware h100)"
        )
    note(
        f"{work.name}: measuring copies of {depths[0]} and {depths[1]} of {most} layers for about {seconds:.0f} s"
    )
    results = [_child(work, shallow(spec, layers), config, seconds / 2, turns=True) for layers in depths]
    return _extrapolated(work, [shallow(spec, n) for n in depths], results, rows, found)


def _of_turns(work: Work, model: Model, rows: Rows, precision: str, device: str) -> float:
    """Peak bytes by arithmetic of steps of two micro-batches and of one twice as large."""
    large = dataclasses.replace(rows, count=2 * rows.count)
    return max(
        arithmetic(work, model, each, count, precision, device).peak
        for each, count in ((rows, 2), (large, 1))
    )


def _extrapolated(
    work: Work, specs: list[Spec], results: list[dict[str, Any]], rows: Rows, found: dict[str, float]
) -> Measured:
    """The whole from two shallow copies. Their steps have one micro-batch and two in turn."""
    heads, precision, device = work.model.head_specs, results[0]["precision"], results[0]["device"]
    models = [build_empty(spec, heads) for spec in specs]
    clock = "seconds" if device == "cuda" else "cpu"
    slower = sum(sum(r["seconds"][WARM:]) for r in results) / sum(sum(r[clock][WARM:]) for r in results)
    turns = [_per_turn(result, clock) for result in results]
    # Seconds of a place, and of a micro-batch and an update whatever their places.
    place = [max(large - one, 0.2 * one) / rows.places for one, _, large in turns]
    micro = [max(0.0, min(two - large, one)) for one, two, large in turns]
    update = [max(0.0, one - p * rows.places - m) for (one, _, _), p, m in zip(turns, place, micro)]

    def along(values: list[float], at: list[float], whole: float) -> float:
        slope = max(0.0, (values[1] - values[0]) / max(at[1] - at[0], 1e-12))
        return values[1] + slope * (whole - at[1])

    flops = [flops_per_place(model, rows) for model in models]
    numbers = [float(model.parameter_count()) for model in models]
    count = float(work.model.parameter_count())
    forward = along(place, flops, flops_per_place(work.model, rows)) * work.shape.micro.places
    per_micro = forward + along(micro, numbers, count)
    cpu = work.shape.micro_batches * per_micro + along(update, numbers, count)
    told = [_of_turns(work, model, rows, precision, device) for model in models]
    whole = arithmetic(
        work, work.model, work.shape.micro, round(work.shape.micro_batches), precision, device
    ).peak
    return Measured(
        step=cpu * slower,
        cpu=cpu,
        share=min(_share(result) for result in results),
        first=0.0,
        forward=per_micro / 3 * slower,
        checkpoint=along([result["after"] for result in results], numbers, count),
        peak=along([result["peak"] for result in results], told, whole),
        base=results[0]["base"],
        rates=found,
        precision=precision,
        device=device,
        how="from copies of "
        + " and ".join(f"{max(len(spec.encoder), len(spec.decoder))}" for spec in specs)
        + f" layers, {rows.places:,.0f} places at once",
    )


def _per_turn(result: dict[str, Any], clock: str) -> tuple[float, float, float]:
    """The usual seconds of each kind of step."""
    times = result[clock]
    one, two, large = (float(np.median(times[WARM + turn :: 3])) for turn in range(3))
    return one, two, large


def _child(work: Work, spec: Spec, config: TrainStage, seconds: float, turns: bool) -> dict[str, Any]:
    """Runs steps in a process of their own. Raises RunError with its last line where it fails."""
    with tempfile.TemporaryDirectory(prefix="nalanda-plan-") as place:
        folder = Path(place)
        job = {
            "spec": spec.to_dict(),
            "heads": {name: head.to_dict() for name, head in work.model.head_specs.items()},
            "config": config.to_dict(),
            "lengths": {key: lengths.tolist() for key, lengths in work.lengths.items()},
            "seconds": seconds,
            "turns": turns,
            "real": work.rows is not None and work.rows <= _READ,
        }
        io.write_json(folder / "job.json", job)
        paths = [str(Path(nalanda.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "nalanda.stages.calibrate_steps",
                str(folder / "job.json"),
                str(folder / "result.json"),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
        )
        if done.returncode or not (folder / "result.json").exists():
            lines = done.stderr.strip().splitlines() or [f"it was killed (signal {-done.returncode})"]
            raise RunError(f"{work.name}: measuring failed: {lines[-1].removeprefix('nalanda.base.errors.')}")
        result: dict[str, Any] = io.read_json(folder / "result.json")
        return result
