"""Which data, objective and model train together, and the heads that an objective looks through.

problem = misfit(config.objective, config.data, "decoder")
model = load_model(folder, heads_for(config.objective))
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nalanda.data.build import AnyDataConfig
from nalanda.data.mixture import MixtureConfig
from nalanda.data.source import DataConfig
from nalanda.nn.spec import HeadSpec, SequenceHeadSpec, TokensHeadSpec
from nalanda.objectives.experts import ExpertsConfig
from nalanda.objectives.next_sentence import MlmNextSentenceConfig
from nalanda.objectives.tokens import TokensConfig
from nalanda.stages.experts import inner_objective

PlainObjective = Annotated[TokensConfig | MlmNextSentenceConfig, Field(discriminator="kind")]
ObjectiveConfig = Annotated[
    TokensConfig | MlmNextSentenceConfig | ExpertsConfig[PlainObjective], Field(discriminator="kind")
]


_DATA = {
    "encoder": ("masked", "next_sentence"),
    "decoder": ("causal",),
    "encoder_decoder": ("pairs", "denoise"),
}


def data_parts(data: AnyDataConfig) -> dict[str, DataConfig]:
    """The kinds of data that are mixed, by config key; one that is no mixture is its only part."""
    if isinstance(data, MixtureConfig):
        return {f"data.parts.{index}": part for index, part in enumerate(data.parts)}
    return {"data": data}


def misfit(objective: ObjectiveConfig, data: AnyDataConfig, model: str) -> str:
    """Why data, objective and a model of kind `model` do not train together, in one line; empty where they do."""
    objective = inner_objective(objective)
    for key, part in data_parts(data).items():
        kind = str(part.kind)  # type: ignore[attr-defined]
        if kind not in _DATA[model]:
            return f"{key}: kind '{kind}' does not train a model of kind '{model}'; use {' or '.join(_DATA[model])}"
        if isinstance(objective, MlmNextSentenceConfig) != (kind == "next_sentence"):
            return (
                f"{key}: kind '{kind}' does not go with objective '{objective.kind}': "
                "'mlm_next_sentence' and data 'next_sentence' go together"
            )
    if isinstance(objective, MlmNextSentenceConfig) and objective.next_sentence.head == "tokens":
        return "objective.next_sentence.head: 'tokens' is the head over the vocabulary; use another name"
    return ""


def heads_for(objective: ObjectiveConfig) -> dict[str, HeadSpec]:
    """The heads that an objective looks through."""
    objective = inner_objective(objective)
    heads: dict[str, HeadSpec] = {"tokens": TokensHeadSpec()}
    if isinstance(objective, MlmNextSentenceConfig):
        heads[objective.next_sentence.head] = SequenceHeadSpec(classes=2)
    return heads
