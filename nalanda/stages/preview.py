"""`nalanda data preview`: the batch of one step, trained tokens in colour, before any training."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from nalanda.base.errors import RunError
from nalanda.config import ConfigError
from nalanda.data.build import build_source
from nalanda.data.preview import preview as render
from nalanda.stages.recipe import Planned, Recipe
from nalanda.stages.stage import Context
from nalanda.stages.starting import data_places, data_prompting, data_tokenizer
from nalanda.stages.train import TrainStage, data_seed


def choose(recipe: Recipe, stage: str | None) -> Planned:
    """The training stage to show: the one named, or the only one."""
    training = {name: planned for name, planned in recipe.stages.items() if planned.verb == "train"}
    if stage is None and len(training) == 1:
        return next(iter(training.values()))
    if stage not in training:
        wanted = "name one with --stage" if stage is None else f"no training stage is called '{stage}'"
        raise ConfigError(f"{recipe.origin}: {wanted}; training stages: {', '.join(training) or 'none'}")
    return training[stage]


def preview(recipe: Recipe, stage: str | None, step: int, rows: int, context: Context) -> None:
    """Prints the first micro-batch of `step`. Raises RunError where corpus or tokenizer are not made yet."""
    planned = choose(recipe, stage)
    config: TrainStage = planned.config
    for key, place in data_places(config).items():
        # A tokenizer may be one of the hub's.
        if not place.exists() and (key.endswith(".corpus") or place.is_relative_to(recipe.folder)):
            raise RunError(
                f"{key}: {place} is not made yet; run 'nalanda run {recipe.origin}' up to that stage first"
            )
    tokenizer = data_tokenizer(config)
    prompting = data_prompting(config, tokenizer)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="nalanda-preview-") as folder:
        seed = data_seed(config)
        source = build_source(
            config.data, "train", tokenizer, Path(folder), seed, context.progress, prompting=prompting
        )
        for line in render(source.step(step)[0], tokenizer, rows):
            console.print(line)
