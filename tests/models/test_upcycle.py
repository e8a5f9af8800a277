"""A dense model that became a mixture says what it said, and its experts are its feed-forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from nalanda.base.errors import DataError
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.models.upcycle import UpcycleConfig, upcycle
from nalanda.nn.model import Model
from nalanda.nn.moe import MoE
from nalanda.nn.spec import TokensHeadSpec

V = 31


def dense(**values: Any) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(
        **{"kind": "decoder", "layers": 3, "hidden": 16, "heads": 2, "init_std": 0.3, **values}
    )
    model = Model(build_spec(config, V), {"tokens": TokensHeadSpec()}).eval()
    for name, weight in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(weight)
    return model


def batch(kind: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = {"ids": torch.randint(V, (2, 9), generator=draw)}
    if kind == "encoder_decoder":
        ids["source_ids"] = torch.randint(V, (2, 7), generator=draw)
    return ids


def logits(model: Model, kind: str = "decoder") -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(batch(kind)).hidden_BTD)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({"feedforward": "glu", "activation": "silu"}, {"experts": 4, "top_k": 2}),
        ({"feedforward": "mlp", "bias": True}, {"experts": 3, "top_k": 3, "every": 2, "balance_bias": True}),
        ({"feedforward": "mlp", "tie_embeddings": False}, {"router": "sigmoid", "dense": 1, "top_k": 1}),
    ],
)
def test_says_what_the_dense_model_said(kind: str, model: dict[str, Any], options: dict[str, Any]) -> None:
    before = dense(kind=kind, **model)
    expected, weights = logits(before, kind), {k: v.clone() for k, v in before.state_dict().items()}
    after = upcycle(before, UpcycleConfig(**options))
    mixtures = [name for name, module in after.named_modules() if isinstance(module, MoE)]
    stacks = 2 if kind == "encoder_decoder" else 1
    assert len(mixtures) == stacks * {"every": 1, "dense": 2}.get(
        next(iter(options.keys() & {"every", "dense"}), ""), 3
    )
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits(after, kind), expected, rtol=1e-5, atol=1e-5)
    assert not after.training
    for value in after.parameters():
        value.data.add_(1)
    assert all(torch.equal(value, weights[name]) for name, value in before.state_dict().items())


def test_noise_tells_the_experts_apart() -> None:
    before = dense(feedforward="glu", hidden=64)
    torch.manual_seed(5)
    after = upcycle(before, UpcycleConfig(experts=4, noise=0.1))
    layer = "transformer.decoder.blocks.1.feedforward"
    old = before.get_parameter(f"{layer}.gate_up.weight")
    new = after.get_parameter(f"{layer}.experts.gate_up.weight")
    for expert in new:
        assert float(((expert - old).std() / old.std()).detach()) == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(new[0], new[1])
    assert 0.01 < (logits(after) - logits(before)).abs().max() < 5


def test_the_router_is_drawn_from_the_seed() -> None:
    def router(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        made = upcycle(model, UpcycleConfig(experts=4))
        return made.get_parameter("transformer.decoder.blocks.0.feedforward.router.weight").detach()

    model = dense()
    assert torch.equal(router(1), router(1))
    assert not torch.equal(router(1), router(2))


def test_what_cannot_be_upcycled() -> None:
    with pytest.raises(DataError, match="no layer becomes a mixture"):
        upcycle(dense(), UpcycleConfig(every=9))
    sparse = upcycle(dense(), UpcycleConfig(every=2))
    with pytest.raises(DataError, match="no layer becomes a mixture"):
        upcycle(sparse, UpcycleConfig(every=2))
    again = upcycle(sparse, UpcycleConfig(experts=4))  # the mixture stays, the others follow
    assert [b.feedforward.experts for b in again.spec.decoder] == [4, 8, 4]  # type: ignore[union-attr]
    torch.testing.assert_close(logits(again), logits(sparse), rtol=1e-5, atol=1e-5)
    for values, message in (({"inner": 9}, "has its width"), ({"shared": 9}, "no shared expert to copy")):
        with pytest.raises(ValidationError, match=message):
            UpcycleConfig(**values)
    with pytest.raises(ValidationError, match="must not be more than experts"):
        UpcycleConfig(experts=2, top_k=3)
