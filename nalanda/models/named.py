"""A new model of a known family: random weights, saved as that family's checkpoint.

    model: {family: llama, preset: smollm2-135m, config: {num_hidden_layers: 4}}

Values of `config` have Hugging Face's names and go before the preset's, those before the family's own defaults. The
size of the vocabulary and the numbers of special tokens are the tokenizer's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from nalanda.config import Config
from nalanda.models.auto import FAMILIES
from nalanda.models.choice import choose_heads
from nalanda.models.family import ConfigProblem, Family
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec, Spec

_TOKENIZERS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Keys of config.json that a recipe leaves to the tokenizer."""
_SMALLEST = {"vocab_size": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


class FamilyConfig(Config):
    """A model with random weights whose network is a family's."""

    family: str = Field(description="llama, qwen3, bert, t5 ...")
    preset: str | None = Field(default=None, description="a named size of the family")
    config: dict[str, Any] = Field(
        default_factory=dict, description="values of config.json, with Hugging Face's names"
    )

    @model_validator(mode="after")
    def _known(self) -> FamilyConfig:
        if self.family not in FAMILIES:
            raise ValueError(f"unknown family '{self.family}'; {_near(self.family, FAMILIES)}")
        family = FAMILIES[self.family]
        if self.preset is not None and self.preset not in family.presets:
            raise ValueError(
                f"family {self.family} has no preset '{self.preset}'; {_near(self.preset, family.presets)}"
            )
        names = {name for part in family.keys for name in part.names()}
        for key in self.config:
            if key in _TOKENIZERS:
                raise ValueError(f"config.{key}: comes from the tokenizer; leave it out")
            if key not in names:
                known = names - set(_TOKENIZERS)
                raise ValueError(f"config.{key}: family {self.family} has no such key; {_near(key, known)}")
        try:
            self.spec()
        except ConfigProblem as problem:
            raise ValueError(f"config: {problem}") from None
        return self

    @property
    def kind(self) -> str:
        """encoder, decoder or encoder_decoder."""
        return str(self._family.constants["kind"])

    @property
    def _family(self) -> Family:
        return FAMILIES[self.family]

    def values(self, tokenizer: Mapping[str, int]) -> dict[str, Any]:
        """config.json's values; `tokenizer`: those of _TOKENIZERS."""
        family = self._family
        preset = family.presets[self.preset] if self.preset is not None else {}
        return {"model_type": family.model_types[0], **family.fresh, **preset, **self.config, **tokenizer}

    def spec(self, tokenizer: Mapping[str, int] = _SMALLEST) -> Spec:
        """The network. Raises ConfigProblem naming the key that does not fit."""
        return self._family.spec(self.values(tokenizer))


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"it is one of: {', '.join(sorted(known)) or 'none'}"
    )


def new_model(config: FamilyConfig, tokenizer: Mapping[str, int], heads: Mapping[str, HeadSpec]) -> Model:
    """The model with the heads asked for, as its family builds them; its weights are drawn from torch's generator.

    `tokenizer`: vocab_size, bos_token_id, eos_token_id, pad_token_id and, beside an encoder, decoder_start_token_id.
    """
    values, family = config.values(tokenizer), FAMILIES[config.family]
    written = family.config(config.spec(tokenizer), values)
    chosen, _ = choose_heads(family, written, heads, ())
    model = Model(family.spec(written), chosen)
    model.origin = {**written, **tokenizer}
    model.generation = {key: value for key, value in tokenizer.items() if key != "vocab_size"}
    return model
