"""`--dry-run`: everything but the work. Each stage runs on a sliver of its data, in a folder that is thrown away.

Says what a run would be: parameters, FLOPs, memory, and the time that the budget would take on this machine.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from nalanda.stages import pipeline
from nalanda.stages.recipe import Planned, Recipe
from nalanda.stages.stage import Context


def run(recipe: Recipe, context: Context) -> list[str]:
    """Runs the shrunken recipe and returns lines that describe the full one. Raises what a real run would raise."""
    with tempfile.TemporaryDirectory(prefix="nalanda-dry-") as place:
        small = shrink(recipe, Path(place))
        results = pipeline.run(small, context)
    lines = [f"dry run of {recipe.origin}: every stage ran on a sliver of data; nothing was kept"]
    for name, planned in recipe.stages.items():
        lines += _describe(name, planned, results[name])
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


def _describe(name: str, planned: Planned, result: dict[str, Any]) -> list[str]:
    if planned.verb != "train":
        return [f"{name}: {planned.verb}, sliver done in {result['seconds']:.1f} s"]
    config = planned.config
    step = result["training_seconds"] / max(1, result["steps"])
    tokens = config.data.batch_tokens if hasattr(config.data, "batch_tokens") else 0
    parameters = result["parameters"]
    # Weights, gradients and two moments in fp32, and activations as measured by the sliver's peak.
    memory = parameters * 16
    budget = config.budget
    time = (
        f"{budget.minutes:g} minutes"
        if budget.steps is None
        else f"about {budget.steps * step / 60:.1f} minutes"
    )
    return [
        f"{name}: {parameters:,} parameters, {6 * parameters * tokens / 1e9:.1f} GFLOPs a step of {tokens:,} tokens",
        f"{name}: weights, gradients and moments {memory / 2**20:.0f} MiB, peak measured "
        f"{result['peak_memory_bytes'] / 2**20:.0f} MiB, {step:.3f} s a step (the first, cold), {time} in all",
    ]
