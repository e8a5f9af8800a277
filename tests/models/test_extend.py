"""Scaled rotations: the same numbers as transformers' model of the same rope config, and nothing else is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nalanda.base.errors import DataError
from nalanda.models.exchange import load_model, save_model
from nalanda.models.extend import extended, extended_spec
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NtkScaling,
    RotaryScaling,
    YarnScaling,
)

transformers = pytest.importorskip("transformers", reason="the oracle")
pytestmark = pytest.mark.filterwarnings("ignore")
VALUES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 48, "max_position_embeddings": 32, "initializer_range": 0.3,
}  # fmt: skip
SCALINGS: list[tuple[RotaryScaling, dict[str, Any]]] = [
    (LinearScaling(factor=4), {"rope_type": "linear", "factor": 4.0}),
    (NtkScaling(factor=4), {"rope_type": "default", "rope_theta": 10_000.0 * 4 ** (16 / 14)}),
    (DynamicScaling(factor=4, original_length=32), {"rope_type": "dynamic", "factor": 4.0}),
    (
        YarnScaling(factor=4, original_length=32),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    (
        Llama3Scaling(factor=4, original_length=32),
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
]


def logits(model: Model, ids_BT: Tensor) -> Tensor:
    rows, length = ids_BT.shape
    places = torch.arange(length, dtype=torch.int32).expand(rows, length)
    batch = {"ids": ids_BT, "segments": torch.ones_like(places), "positions": places}
    with torch.no_grad():
        return model.logits(model(batch).hidden_BTD)


def published(name: str, folder: Path, **values: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config" if name != "Gemma3" else "Gemma3TextConfig")(
        **{**VALUES, **values}
    )
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize(("scaling", "rope"), SCALINGS, ids=[scaling.kind for scaling, _ in SCALINGS])
def test_numbers_are_those_of_transformers(
    scaling: RotaryScaling, rope: dict[str, Any], tmp_path: Path
) -> None:
    plain = published("Llama", tmp_path / "base")
    length = 32 if scaling.kind == "dynamic" else 128
    rope = {"rope_theta": 10_000.0, **rope}
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "base", rope_parameters=rope, max_position_embeddings=length
    ).eval()
    ids = torch.randint(0, 64, (2, 90))
    ours = extended(load_model(tmp_path / "base"), scaling)
    with torch.no_grad():
        wanted, before = theirs(input_ids=ids).logits, plain(input_ids=ids).logits
    torch.testing.assert_close(logits(ours, ids), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - before).abs().max() > 0.1
    save_model(ours, tmp_path / "long")
    saved = json.loads((tmp_path / "long" / "config.json").read_text())
    assert saved["max_position_embeddings"] == length
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "long").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load_model(tmp_path / "long"), ids), logits(ours, ids))


def test_layers_with_a_window_and_a_base_of_their_own_stay(tmp_path: Path) -> None:
    layers = ["sliding_attention", "full_attention"]
    published("Gemma3", tmp_path / "base", head_dim=16, sliding_window=8, layer_types=layers)
    model = extended(load_model(tmp_path / "base"), LinearScaling(factor=8))
    near, far = (block.attention for block in model.spec.decoder)
    assert near.window is not None
    assert near.rotary is not None
    assert far.rotary is not None
    assert near.rotary.scaling is None
    assert far.rotary.scaling == LinearScaling(factor=8)
    save_model(model, tmp_path / "long")
    theirs = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path / "long").eval()
    assert theirs.config.max_position_embeddings == 256
    ids = torch.randint(0, 64, (2, 90))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, ids), theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_weights_stay_tied_and_the_same() -> None:
    spec = build_spec(ModelConfig(kind="decoder", layers=2, hidden=32, heads=2, position="rotary"), 64)
    from nalanda.nn.spec import TokensHeadSpec

    model = Model(spec, {"tokens": TokensHeadSpec()})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    long = extended(model, YarnScaling(factor=2, original_length=1024))
    assert long.tied() == model.tied() != {}
    assert all(torch.equal(value, before[name]) for name, value in long.state_dict().items())
    assert long.spec.decoder_position.max_length == 2048
    assert not any(value.is_meta for value in long.buffers())


def test_what_does_not_turn_is_refused() -> None:
    spec = build_spec(ModelConfig(kind="decoder", layers=1, hidden=16, heads=2, position="learned"), 64)
    with pytest.raises(DataError, match="rope: the model has no rotary positions"):
        extended_spec(spec, LinearScaling(factor=2))


def test_a_list_of_factors_must_fit_the_heads() -> None:
    spec = build_spec(ModelConfig(kind="decoder", layers=1, hidden=16, heads=2, position="rotary"), 64)
    scaling = LongRopeScaling(short=(1.0,), long=(2.0,), original_length=64)
    with pytest.raises(DataError, match="rope: longrope: 1 factors for 4 rotations"):
        extended_spec(spec, scaling)
