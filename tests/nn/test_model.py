"""Initialization, heads, tied weights, counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import SequenceHeadSpec, TokensHeadSpec


def make(**config: Any) -> Model:
    torch.manual_seed(0)
    spec = build_spec(ModelConfig(**{"hidden": 64, "layers": 2, **config}), 500)
    return Model(spec, {"tokens": TokensHeadSpec(), "labels": SequenceHeadSpec(classes=3)})


@pytest.mark.parametrize("init", ["normal", "scaled"])
def test_initialization_is_what_it_says(init: str) -> None:
    model = make(init=init, bias=True, feedforward="glu", decoder_layers=3, position="relative")
    for name, weight in model.named_parameters():
        if name.endswith("bias") and "bias" in name.split("."):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        else:
            matrix = 0.02 if init == "normal" else weight.shape[-1] ** -0.5
            layers = 3 if ".decoder." in name else 2
            residual = "blocks" in name and ".output." in name
            expected = matrix / math.sqrt(2 * layers) if residual else matrix
            if name.endswith("tokens.weight"):
                expected = 0.02 if init == "normal" else 64**-0.5
            if name.endswith("table.weight"):
                expected = 0.02
            assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(weight.numel())), name
            assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel()), name


def test_the_seed_decides_all_weights() -> None:
    one, two = make(), make()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_tied_weights_are_one_and_counted_once() -> None:
    tied, own = make(), make(tie_embeddings=False)
    assert tied.heads["tokens"].output.weight is tied.transformer.tokens.weight
    assert tied.tied() == {"heads.tokens.output.weight": "transformer.tokens.weight"}
    assert own.tied() == {}
    assert own.parameter_count() - tied.parameter_count() == 500 * 64
    assert tied.parameter_count() - tied.parameter_count(embeddings=False) == 500 * 64


@pytest.mark.parametrize("place", ["first", "last"])
def test_sequence_head_finds_the_real_place(place: str) -> None:
    spec = build_spec(ModelConfig(kind="encoder", hidden=64), 500)
    head = Model(spec, {"labels": SequenceHeadSpec(classes=3, place=place)}).eval()
    hidden = torch.randn(3, 5, 64)
    segments = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    column = [0, 2, 0] if place == "first" else [2, 4, 4]
    found = head.logits(hidden, "labels", segments)
    expected = head.logits(hidden[range(3), column][:, None], "labels")
    torch.testing.assert_close(found, expected)


def test_flops_count_the_products() -> None:
    """PyTorch's own counter over a forward agrees (it knows attention as plain products only)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = make(kind="encoder", layers=2, feedforward="glu", inner=96, kv_heads=2)
    ids = torch.zeros(3, 16, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model({"ids": ids}).hidden_BTD)
    assert 3 * counter.get_total_flops() / (3 * 16) == pytest.approx(model.flops_per_token(16), rel=0.01)


def test_an_unknown_head_is_named() -> None:
    with pytest.raises(KeyError, match="rewards"):
        make().logits(torch.zeros(1, 1, 64), "rewards")
