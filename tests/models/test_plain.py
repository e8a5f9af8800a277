"""What a recipe may write about a model."""

from __future__ import annotations

from typing import Any

import pytest

from nalanda.config import ConfigError, parse
from nalanda.models.plain import ModelConfig, build_spec


def test_defaults_are_spelled_out() -> None:
    spec = build_spec(ModelConfig(layers=2, decoder_layers=1, dropout=0.1), 100)
    assert (len(spec.encoder), len(spec.decoder), spec.vocabulary, spec.hidden) == (2, 1, 100, 192)
    assert spec.encoder[0].feedforward.inner == 768
    assert spec.encoder[0].cross is None
    assert spec.decoder[0].cross is not None
    assert not spec.decoder[0].cross.rotary
    assert spec.decoder[0].dropout == spec.embedding_dropout == 0.1
    assert spec.final_norm
    assert not build_spec(ModelConfig(norm_place="post"), 100).final_norm


def test_glu_costs_what_mlp_does() -> None:
    spec = build_spec(ModelConfig(feedforward="glu", hidden=192), 100)
    assert spec.encoder[0].feedforward.inner == 512


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden": 100, "heads": 3}, "must be a multiple of heads"),
        ({"kind": "decoder", "decoder_layers": 2}, "decoder_layers is for kind encoder_decoder"),
        ({"kind": "decoder", "cross_rotary": True}, "cross_rotary needs"),
        ({"hiden": 100}, "hidden"),
        ({"heads": 0}, "heads"),
    ],
)
def test_mistakes_are_config_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(ModelConfig, values, origin="recipe.yaml")
