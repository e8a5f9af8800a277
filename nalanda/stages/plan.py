"""`nalanda plan`: what training a recipe would need and take, before it is started.

    plan(recipe, Options(hardware="h100x8"))         # from a table of machines: no weight is made
    plan(recipe, Options(hardware="here"))           # from steps measured on this machine, now

Gives plain values: for each training stage parameters, FLOPs, memory by part, layouts that fit, time, energy, cost
and what Chinchilla's law says of its size; and the sum of all. What is assumed is said with them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nalanda.base.errors import UserError
from nalanda.base.machine import free_memory
from nalanda.base.progress import unsaid
from nalanda.stages.calibrate import Measured, arithmetic, calibrate, held_logits
from nalanda.stages.plan_work import Work, flops_per_place, works
from nalanda.stages.recipe import Recipe
from nalanda.study.scaling import FITTED_FROM, HOFFMANN, REPLICATED, tradeoff
from nalanda.train.machines import Device, Machine, find
from nalanda.train.plan_layout import MFU, USABLE, Estimate, Job, enough, search
from nalanda.train.plan_memory import Memory, Sizes

HERE = "here"
SHOWN = 3
"""Layouts that are told."""


@dataclass(frozen=True)
class Options:
    """What the command line says. mfu: share of peak that products reach; price: of a device's hour, in US dollars;
    watts: of the whole machine under load; seconds: how long to measure here."""

    hardware: str
    mfu: float | None = None
    price: float | None = None
    watts: float | None = None
    seconds: float = 30.0

    def check(self) -> None:
        """Raises UserError for numbers that mean nothing."""
        for name, low, high in (
            ("mfu", 0.0, 1.0),
            ("price", -1.0, 1e6),
            ("watts", 0.0, 1e9),
            ("seconds", 1.0, 3600.0),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low < value <= high):
                bound = f"from 0 to {high:g}" if low < 0 else f"more than {low:g} and at most {high:g}"
                raise UserError(f"--{name}: {value:g} is not {bound}")
        if self.hardware == HERE and self.mfu is not None:
            raise UserError("--mfu: is measured here; leave it out, or name a machine of the table")


def plan(recipe: Recipe, options: Options, note: Callable[[str], None] = unsaid) -> dict[str, Any]:
    """The plan of every training stage. Raises UserError and its kin, in one line, for what cannot be planned."""
    options.check()
    machine = None if options.hardware == HERE else find(options.hardware)
    stages = []
    for work in works(recipe):
        if machine is not None:
            stages.append(_on_table(work, machine, options))
        else:
            stages.append(_here(work, options, note))
    return {
        "recipe": str(recipe.origin),
        "hardware": options.hardware,
        "machine": None if machine is None else {"count": machine.count, **machine.device.to_dict()},
        "stages": stages,
        "total": {
            key: _sum(stage[key] for stage in stages) for key in ("tokens", "flops", "hours", "kwh", "cost")
        },
    }


def _sum(values: Any) -> float | None:
    found = list(values)
    return None if any(value is None for value in found) else float(sum(found))


def _stage(work: Work, precision: str) -> dict[str, Any]:
    """What is the same on every machine."""
    spec, sizes = work.model.spec, Sizes.of(work.model)
    kind = "encoder_decoder" if spec.encoder and spec.decoder else ("encoder" if spec.encoder else "decoder")
    return {
        "name": work.name,
        "model": {"kind": kind, "layers": len(spec.encoder) + len(spec.decoder), "hidden": spec.hidden},
        "parameters": sizes.total,
        "active_parameters": sizes.active,
        "embedding_parameters": sizes.embedding,
        "precision": precision,
        "step_places": work.shape.places,
        "micro_batches": work.shape.micro_batches,
        "real_share": work.shape.real,
        "rows": dataclasses.asdict(work.shape.step),
        "flops_per_token": flops_per_place(work.model, work.shape.step),
        "assumed": list(work.assumed),
    }


def _spent(
    work: Work, stage: dict[str, Any], step: float, extra: float, machine: dict[str, float | None]
) -> None:
    """Adds steps, tokens, hours, energy and cost. `extra`: seconds outside of steps in a whole run."""
    steps = (
        work.whole_steps if work.whole_steps is not None else max(1, round((work.minutes or 0) * 60 / step))
    )
    places = steps * work.shape.places
    hours = (steps * step + extra) / 3600
    watts, price = machine["watts"], machine["price"]
    stage |= {
        "steps": steps,
        "tokens": places * work.shape.real,
        "flops": places * stage["flops_per_token"],
        "step_seconds": step,
        "tokens_per_second": work.shape.places * work.shape.real / step,
        "training_hours": steps * step / 3600,
        "hours": hours,
        "kwh": None if watts is None else watts * hours / 1000,
        "cost": None if price is None else price * hours,
    }
    stage["scaling"] = _scaling(work, stage)


def _scaling(work: Work, stage: dict[str, Any]) -> dict[str, Any] | str:
    """What Chinchilla's law says of this size and these tokens, or why it says nothing."""
    if stage["model"]["kind"] != "decoder":
        return "the law was fitted to decoders"
    if not work.fresh:
        return "the law is of models trained from random weights"
    size, tokens = float(stage["active_parameters"]), float(stage["tokens"])
    if size < FITTED_FROM:
        few = REPLICATED.optimal_tokens(size)
        return (
            f"the law was fitted from {FITTED_FROM / 1e6:.0f} M parameters on, this model has {size / 1e6:.3g} M; "
            f"its best tokens, far outside of the fit: {few / 1e6:,.0f} M"
        )
    best = REPLICATED.optimum(6 * size * tokens)
    return {
        "formula": "L(N, D) = E + A / N^alpha + B / D^beta",
        "fit": dataclasses.asdict(REPLICATED),
        "loss": REPLICATED.loss(size, tokens),
        "optimal_tokens": REPLICATED.optimal_tokens(size),
        "hoffmann": {
            **dataclasses.asdict(HOFFMANN),
            "loss": HOFFMANN.loss(size, tokens),
            "optimal_tokens": HOFFMANN.optimal_tokens(size),
        },
        "optimum_of_compute": {"parameters": best[0], "tokens": best[1], "loss": REPLICATED.loss(*best)},
        "choices": [dataclasses.asdict(choice) for choice in tradeoff(REPLICATED, size, tokens)],
    }


# -- a machine of the table -----------------------------------------------------------------------------------------


def _job(work: Work, precision: str, device: str) -> Job:
    chunk, block = held_logits(work, work.model.spec.vocabulary, device)
    return Job(
        spec=work.model.spec,
        sizes=Sizes.of(work.model),
        rows=work.shape.step,
        flops_per_place=flops_per_place(work.model, work.shape.step),
        precision=precision,
        optimizer=work.config.optimizer,
        chunk=chunk,
        block=block,
        average=work.config.ema is not None,
        device=device,
    )


def _on_table(work: Work, machine: Machine, options: Options) -> dict[str, Any]:
    device, mfu = machine.device, options.mfu or MFU
    wanted = work.config.precision
    precision = "bf16" if device.bf16 and wanted in ("auto", "bf16") else "fp32"
    stage = _stage(work, precision)
    if wanted == "bf16" and not device.bf16:
        stage["assumed"].append(f"fp32, because {device.about} has no bf16")
    said = "as --mfu says" if options.mfu else "an assumption: --mfu sets another"
    stage["assumed"].append(
        f"products reach {mfu:.0%} of the {precision} peak in large micro-batches ({said})"
    )
    job = _job(work, precision, "cpu" if options.hardware.startswith("cpu") else "cuda")
    found = search(job, machine, mfu)
    if not found:
        raise UserError(
            f"{work.name}: a step has {work.shape.step.count:,.0f} rows, too few for {machine.count:,} devices; "
            "raise data.batch_tokens or take fewer devices"
        )
    best = found[0]
    stage["memory"] = _memory(best, device.memory)
    stage["layouts"] = [_layout(work, each) for each in _different(found)[:SHOWN]]
    if not best.fits:
        stage["enough"] = enough(job, machine, mfu)
    price = device.price if options.price is None else options.price
    watts = options.watts or device.watts * (1 + device.overhead) * machine.count
    _spent(work, stage, best.seconds, 0.0, {"watts": watts, "price": price * machine.count})
    stage["mfu"] = (
        job.flops_per_place * work.shape.places / (best.seconds * machine.count * device.peak(precision))
    )
    return stage


def _different(found: list[Estimate]) -> list[Estimate]:
    """The best of each way of cutting."""
    kept: dict[tuple[int, ...], Estimate] = {}
    for each in found:
        if each.fits or not kept:
            layout = each.layout
            kept.setdefault((layout.data, layout.expert, layout.context, layout.tensor, layout.shard), each)
    return list(kept.values())


def _memory(estimate: Estimate, available: float) -> dict[str, Any]:
    memory = estimate.memory
    return {
        "parts": dict(memory.parts),
        "peak": memory.peak,
        "at": memory.at,
        "available": available,
        "fits": estimate.fits,
        "usable": USABLE,
    }


def _layout(work: Work, estimate: Estimate) -> dict[str, Any]:
    layout, rows = estimate.layout, work.shape.step
    sizes = {key: getattr(layout, key) for key in ("data", "expert", "context", "tensor")}
    return {
        "parallel": {key: size for key, size in sizes.items() if size > 1 or key == "data"}
        | ({"shard": True} if layout.shard else {})
        | ({"checkpointing": layout.checkpointing} if layout.checkpointing != "none" else {}),
        "micro_batch_tokens": math.ceil(layout.rows * (rows.length + rows.source)),
        "seconds": estimate.seconds,
        "times": estimate.times,
        "tokens_per_second": work.shape.places * work.shape.real / estimate.seconds,
        "peak": estimate.memory.peak,
        "fits": estimate.fits,
    }


# -- this machine ---------------------------------------------------------------------------------------------------


def _here(work: Work, options: Options, note: Callable[[str], None]) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if cuda else free_memory()
    available = math.inf if free is None else float(free)
    measured = calibrate(work, options.seconds, available, note)
    stage = _stage(work, measured.precision)
    told = arithmetic(
        work,
        work.model,
        work.shape.micro,
        round(work.shape.micro_batches),
        measured.precision,
        measured.device,
    )
    # Measured without: a step is written from a copy while the next ones are made.
    copy = _copied(work, told) if measured.device == "cpu" else 0.0
    fits = measured.peak + copy <= USABLE * available
    stage["memory"] = {
        "parts": {
            **told.parts,
            "the program itself": measured.base,
            "not accounted for": measured.peak - measured.base - told.peak,
            "copy for checkpoints": copy,
        },
        "peak": measured.peak + copy,
        "at": told.at,
        "available": available,
        "fits": fits,
        "usable": USABLE,
    }
    stage["calibration"] = dataclasses.asdict(measured)
    steps = round(work.whole_steps or (work.minutes or 0) * 60 / measured.step)
    _spent(work, stage, measured.step, _beside(work, measured, steps, stage), _billed(options))
    job = _job(work, measured.precision, measured.device)
    peak = measured.rates.get(measured.precision, measured.rates["fp32"])
    stage["mfu"] = stage["flops_per_token"] * work.shape.places / peak
    stage["mfu"] /= measured.step if measured.device == "cuda" else measured.cpu
    stage["layouts"] = [] if fits else _smaller(work, job, available - measured.base, measured)
    return stage


def _copied(work: Work, memory: Memory) -> float:
    """Bytes that a checkpoint holds, where it is written from a copy."""
    saves = work.config.checkpoint
    if not saves.asynchronous or (saves.minutes is None and (work.steps or math.inf) <= saves.every):
        return 0.0
    return float(sum(memory.parts[name] for name in ("weights", "masters", "optimizer", "average")))


def _beside(work: Work, measured: Measured, steps: int, stage: dict[str, Any]) -> float:
    """Seconds of a run outside of its steps: the first ones' delay, evaluations, checkpoints."""
    saves = 1 if work.config.checkpoint.asynchronous else steps // work.config.checkpoint.every + 1
    seconds = measured.first + saves * measured.checkpoint
    if work.config.evaluation is not None:
        if work.dev_batches is None:
            stage["assumed"].append(
                "evaluations take no time: the corpus, which has their rows, is not made yet"
            )
        else:
            times = steps // work.config.evaluation.every + 1
            seconds += times * work.dev_batches * measured.forward
    return seconds


def _billed(options: Options) -> dict[str, float | None]:
    return {"watts": options.watts, "price": options.price}


def _smaller(work: Work, job: Job, memory: float, measured: Measured) -> list[dict[str, Any]]:
    """What would fit into this machine, at the speed that was measured."""
    rate = measured.rates.get(measured.precision, measured.rates["fp32"])
    device = Device(
        about="this machine", bf16=rate, fp32=rate, memory=max(memory, 1.0), bandwidth=1e10, link=1e9, network=1e9,
        node=1, watts=1, overhead=0, price=0,
    )  # fmt: skip
    speed = job.flops_per_place * work.shape.places / measured.step / rate
    found = [each for each in search(job, Machine(HERE, device, 1), min(1.0, speed)) if each.fits]
    return [_layout(work, each) for each in found[:SHOWN]]
