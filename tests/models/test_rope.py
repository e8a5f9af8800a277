"""Rotations, windows and layers without either: config.json of both fashions into specs, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nalanda.models.family import ConfigProblem
from nalanda.models.rope import FULL, SLIDING, LayerTypes, Rope, RopeByType, read_scaling, write_scaling
from nalanda.models.shape import Shape
from nalanda.nn.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NtkScaling,
    Rotary,
    RotaryScaling,
    RotarySpec,
    YarnScaling,
)

SCALINGS: list[RotaryScaling] = [
    LinearScaling(factor=4.0),
    Llama3Scaling(factor=8.0, original_length=24, low_frequency_factor=1.5, high_frequency_factor=3.0),
    YarnScaling(factor=4.0, original_length=24),
    YarnScaling(
        factor=4.0, original_length=24, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5, truncate=False
    ),
    LongRopeScaling(
        short=(1.0, 1.1, 1.2, 1.3), long=(1.5, 2.0, 3.0, 4.0), original_length=32, attention_factor=1.25
    ),
]


def shape(**more: Any) -> Shape:
    return Shape(kind="decoder", vocabulary=9, hidden=32, layers=4, heads=4, inner=8, **more)


def read(config: dict[str, Any], rope: Rope | None = None) -> tuple[RotarySpec | None, ...]:
    found: tuple[RotarySpec | None, ...] = (rope or Rope(layers=4)).read({"num_hidden_layers": 4} | config)[
        "rotaries"
    ]
    return found


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.kind)
@pytest.mark.parametrize("fashion", ["old", "new", "both"])
def test_what_is_written_is_read_again(scaling: RotaryScaling, fashion: str) -> None:
    spec = RotarySpec(theta=500.0, scaling=scaling)
    written = Rope().write(shape(rotaries=(spec,) * 4))
    left_out = {"old": ("rope_parameters",), "new": ("rope_scaling", "rope_theta"), "both": ()}[fashion]
    config = {key: value for key, value in written.items() if key not in left_out}
    assert read(config) == (spec,) * 4


def test_dynamic_scaling_is_said_by_the_longest_text() -> None:
    spec = RotarySpec(scaling=DynamicScaling(factor=2.0, original_length=77))
    written = Rope().write(shape(rotaries=(spec,) * 4, max_length=500))
    assert written["max_position_embeddings"] == 77
    assert read(written) == (spec,) * 4


def test_ntk_is_a_larger_base() -> None:
    spec = RotarySpec(theta=1000.0, scaling=NtkScaling(factor=4.0))
    (found, *_) = read(Rope().write(shape(rotaries=(spec,) * 4)))
    assert found is not None
    assert found.scaling is None
    torch.testing.assert_close(Rotary(found, 8).frequency_K, Rotary(spec, 8).frequency_K)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, RotarySpec(theta=10_000.0)),
        ({"rope_theta": 5.0}, RotarySpec(theta=5.0)),
        ({"rope_theta": 5.0, "rope_scaling": None}, RotarySpec(theta=5.0)),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, RotarySpec(theta=7.0)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, RotarySpec(scaling=LinearScaling(factor=2.0))),
        (  # the old key goes first where both are there, as with transformers
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7.0}},
            RotarySpec(scaling=LinearScaling(factor=2.0)),
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            RotarySpec(scaling=DynamicScaling(factor=2.0, original_length=2048)),
        ),
        (
            {
                "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 5},
                "original_max_position_embeddings": 8,
            },
            RotarySpec(scaling=YarnScaling(factor=2.0, original_length=8)),
        ),
    ],
)
def test_fashions_and_defaults(config: dict[str, Any], expected: RotarySpec) -> None:
    assert read(config) == (expected,) * 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"rope_type": "mrope"}}, "'mrope' is not one of default"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {FULL: {"rope_theta": 5.0}}}, rf"by type of layer \({FULL}\)"),
    ],
)
def test_what_is_not_done_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigProblem, match=message):
        read(config)


def test_layers_that_do_not_turn() -> None:
    rope = Rope(layers=4, skip="no_rope_layers")
    spec = RotarySpec()
    assert read({}, rope) == (spec, spec, spec, None)
    assert read({"no_rope_layer_interval": 2}, rope) == (spec, None, spec, None)
    found = read({"no_rope_layers": [0, 1, 1, 0]}, rope)
    assert found == (None, spec, spec, None)
    assert rope.write(shape(rotaries=found))["no_rope_layers"] == [0, 1, 1, 0]
    with pytest.raises(ConfigProblem, match="no_rope_layers has 3 entries for 4 layers"):
        read({"no_rope_layers": [1, 1, 1]}, rope)


TYPES = LayerTypes(rule=lambda config, layer: layer % 2 == 0, window=5, layers=4, switch="on")


def test_windows() -> None:
    assert TYPES.read({}) == {"windows": ()}
    found = TYPES.read({"on": True})
    assert found == {"windows": (5, None, 5, None)}
    listed = [FULL, FULL, SLIDING, FULL]
    assert TYPES.read({"on": True, "sliding_window": 3, "layer_types": listed})["windows"] == (
        None, None, 3, None,
    )  # fmt: skip
    written = TYPES.write(shape(**found))
    assert written == {"sliding_window": 5, "on": True, "layer_types": [SLIDING, FULL] * 2}
    assert TYPES.read(written) == found
    assert TYPES.write(shape()) == {"sliding_window": None, "on": False, "layer_types": [FULL] * 4}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layer_types": [SLIDING] * 4}, f"has {SLIDING}, but there is no sliding_window"),
        ({"on": True, "layer_types": [FULL] * 3}, "3 entries .* for 4 layers"),
        ({"on": True, "layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"on": True, "num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ],
)
def test_types_that_do_not_fit(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigProblem, match=message):
        TYPES.read(config)


def test_rotations_by_type() -> None:
    types = LayerTypes(rule=lambda config, layer: layer % 2 == 0, window=5, layers=4)
    rope = RopeByType(types, full=1e6, sliding=1e4)
    full, sliding = RotarySpec(theta=1e6), RotarySpec(theta=1e4)
    assert rope.read({})["rotaries"] == (sliding, full) * 2
    scaled = RotarySpec(theta=9.0, scaling=LinearScaling(factor=8.0))
    old = {
        "rope_theta": 9.0,
        "rope_local_base_freq": 3.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    found = rope.read(old)
    assert found["rotaries"] == (RotarySpec(theta=3.0), scaled) * 2
    written = rope.write(shape(**found, windows=(5, None) * 2))
    assert (written["rope_theta"], written["rope_local_base_freq"]) == (9.0, 3.0)
    assert (
        rope.read({key: value for key, value in written.items() if isinstance(value, dict | float)}) == found
    )


def test_scaling_without_its_values_is_an_error() -> None:
    with pytest.raises(KeyError, match="factor"):
        read_scaling({"rope_type": "linear"}, {}, 2048)
    assert write_scaling(None) == {"rope_type": "default"}


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.kind)
def test_frequencies_are_those_of_transformers(scaling: RotaryScaling) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    spec = RotarySpec(theta=500.0, scaling=scaling)
    values = Rope().write(shape(rotaries=(spec,) * 4))["rope_parameters"]
    theirs = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=96, rope_parameters=dict(values)
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[values["rope_type"]](theirs, "cpu")
    ours = Rotary(spec, 8)
    torch.testing.assert_close(ours.frequency_K, frequencies, rtol=1e-6, atol=0)
    assert ours.magnitude == pytest.approx(magnitude, rel=1e-12)
