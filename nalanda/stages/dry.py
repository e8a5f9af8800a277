"""`--dry-run`: everything but the work. Each stage runs on a sliver of its data, in a folder that is thrown away.

Says what a run would be: parameters, FLOPs, memory, and the time that the budget would take on this machine.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from nalanda.base.distributed import current
from nalanda.data.build import AnyDataConfig
from nalanda.data.mixture import MixtureConfig
from nalanda.models.exchange import load_model
from nalanda.stages import pipeline
from nalanda.stages.recipe import Planned, Recipe
from nalanda.stages.stage import Context
from nalanda.train.schedule import BudgetConfig


def run(recipe: Recipe, context: Context) -> list[str]:
    """Runs the shrunken recipe and returns lines that describe the full one. Raises what a real run would raise."""
    with tempfile.TemporaryDirectory(prefix="nalanda-dry-") as place:
        small = shrink(recipe, Path(current().of_first(place)))
        results = pipeline.run(small, context)
        for name, result in results.items():
            if "model" in result:
                load_model(small.stages[name].folder / result["model"])
        paces = {
            name: step_seconds(planned.folder / "metrics.jsonl") for name, planned in small.stages.items()
        }
    lines = [f"dry run of {recipe.origin}: every stage ran on a sliver of data; nothing was kept"]
    for name, planned in recipe.stages.items():
        lines += _describe(name, planned, results[name], paces[name])
    return lines


def shrink(recipe: Recipe, place: Path) -> Recipe:
    """The recipe with every stage made tiny and every folder moved below `place`.

    Inputs that the pipeline does not make itself are read where they are.
    """
    stages: dict[str, Planned] = {}
    for name, planned in recipe.stages.items():
        moved = _move(planned.config.to_dict(), recipe.folder, place / recipe.name)
        config = planned.stage.shrink(planned.stage.config.model_validate(moved))
        stages[name] = dataclasses.replace(
            planned, config=config, folder=_moved(planned.folder, recipe.folder, place / recipe.name)
        )
    return dataclasses.replace(recipe, folder=place / recipe.name, stages=stages)


def _moved(path: Path, old: Path, new: Path) -> Path:
    return new / path.relative_to(old) if path.is_relative_to(old) else path


def _move(value: Any, old: Path, new: Path) -> Any:
    if isinstance(value, dict):
        return {key: _move(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_move(inner, old, new) for inner in value]
    if isinstance(value, str) and Path(value).is_relative_to(old):
        return str(_moved(Path(value), old, new))
    return value


def step_seconds(metrics: Path) -> float | None:
    """Seconds of a training step without the first one, which is cold; None where nothing was trained."""
    if not metrics.exists():
        return None
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    clock = [(row["step"], row["seconds"]) for row in rows if "seconds" in row]
    if len(clock) < 2:
        return clock[0][1] if clock else None
    return float((clock[-1][1] - clock[0][1]) / (clock[-1][0] - clock[0][0]))


def step_tokens(data: AnyDataConfig) -> int:
    """Tokens of an optimizer step, padding included; for a mixture, of a step of its parts by their weights."""
    if isinstance(data, MixtureConfig):
        tokens = sum(part.batch_tokens * weight for part, weight in zip(data.parts, data.weights))
        return round(data.picks * tokens / sum(data.weights))
    return data.batch_tokens


def _time(budget: BudgetConfig, step: float) -> str:
    if budget.steps is not None:
        return f"about {budget.steps * step / 60:.1f} minutes in all"
    return (
        f"{budget.minutes:g} minutes in all" if budget.minutes is not None else "as many steps as it replays"
    )


def _describe(name: str, planned: Planned, result: dict[str, Any], step: float | None) -> list[str]:
    if planned.verb != "train" or step is None:
        return [f"{name}: {planned.verb}, sliver done in {result['seconds']:.1f} s"]
    tokens, parameters = step_tokens(planned.config.data), result["parameters"]
    # Weights, gradients and two moments in fp32; activations show in the sliver's peak.
    memory = parameters * 16
    flops = result["flops_per_token"] * tokens
    return [
        f"{name}: {parameters:,} parameters, {flops / 1e9:.1f} GFLOPs a step of {tokens:,} tokens",
        f"{name}: weights, gradients and moments {memory / 2**20:.0f} MiB, peak measured "
        f"{result['peak_memory_bytes'] / 2**20:.0f} MiB, {step:.3f} s a step, {_time(planned.config.budget, step)}",
    ]
