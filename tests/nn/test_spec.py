"""A spec that cannot be built says which block and why; one that can survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from nalanda.nn.rotary import Llama3Scaling, RotarySpec
from nalanda.nn.spec import AttentionSpec, BlockSpec, FeedForwardSpec, PositionSpec, Spec


def block(cross: dict[str, Any] | None = None, **attention: Any) -> BlockSpec:
    return BlockSpec(
        attention=AttentionSpec(**{"heads": 4, **attention}),
        cross=None if cross is None else AttentionSpec(**{"heads": 4, **cross}),
        feedforward=FeedForwardSpec(inner=8),
    )


def test_round_trip_through_json() -> None:
    turned = RotarySpec(scaling=Llama3Scaling(factor=8.0, original_length=16))
    spec = Spec(
        vocabulary=9, hidden=16, encoder=(block(),), decoder=(block({}, rotary=turned), block({}, window=2))
    )
    assert Spec.model_validate(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "at least one encoder or decoder block"),
        ({"encoder": (block({}),)}, "encoder blocks have no cross-attention"),
        ({"decoder": (block({}),)}, "exactly where there is an encoder"),
        ({"encoder": (block(),), "decoder": (block(),)}, "exactly where there is an encoder"),
        ({"encoder": (block(), block(heads=3))}, r"encoder\[1\].attention: hidden \(16\) must be a multiple"),
        ({"encoder": (block(),), "decoder": (block({"window": 2}),)}, "cross-attention has no window"),
    ],
)
def test_what_does_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Spec(vocabulary=9, hidden=16, **values)


def test_shared_parts_need_equal_heads() -> None:
    relative = PositionSpec(kind="relative")
    with pytest.raises(ValidationError, match="they need one number of heads"):
        Spec(vocabulary=9, hidden=16, encoder=(block(), block(heads=2)), encoder_position=relative)
    with pytest.raises(ValidationError, match="rotary needs an even head_dim"):
        Spec(vocabulary=9, hidden=16, encoder=(block(rotary=RotarySpec(), head_dim=3),))
    with pytest.raises(ValidationError, match="must be a multiple of kv_heads"):
        AttentionSpec(heads=4, kv_heads=3)
