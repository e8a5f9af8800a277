"""A mixture of experts is what a loop over places says it is, in the same bits every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nalanda.nn.moe import MoE
from nalanda.nn.spec import MoESpec

HIDDEN, INNER = 12, 8
SPECS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "olmoe": {"normalize": False, "top_k": 3},
    "deepseek": {"router": "sigmoid", "scale": 2.5, "balance_bias": True, "shared": 16},
    "qwen2": {"normalize": False, "shared": 8, "shared_gate": True},
    "switch": {"top_k": 1, "normalize": False, "expert": "mlp", "activation": "relu", "bias": True},
}


def make(name: str = "mixtral", dtype: torch.dtype = torch.float64, **more: Any) -> MoE:
    torch.manual_seed(0)
    values = {"experts": 5, "top_k": 2, "inner": INNER, **SPECS[name], **more}
    moe = MoE(MoESpec(**values), HIDDEN)
    for weight in moe.parameters():
        nn.init.normal_(weight, std=0.5)
    if moe.router.balance_bias is not None:
        moe.router.balance_bias.normal_(std=0.3)
    return moe.to(dtype)


def places(rows: int = 3, length: int = 7, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, HIDDEN, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def one_place(moe: MoE, x_D: Tensor) -> Tensor:
    """A place's output, by the definition."""
    spec, router, experts = moe.spec, moe.router, moe.experts
    logits_E = router.weight @ x_D
    squashed_E = logits_E.softmax(0) if spec.router == "softmax" else torch.sigmoid(logits_E)
    scores = squashed_E.detach().tolist()
    bias = [0.0] * spec.experts if router.balance_bias is None else router.balance_bias.tolist()
    chosen = sorted(range(spec.experts), key=lambda e: -(scores[e] + bias[e]))[: spec.top_k]
    weight = {e: torch.exp(logits_E[e]) / torch.exp(logits_E).sum() for e in chosen}
    if spec.router == "sigmoid":
        weight = {e: 1 / (1 + torch.exp(-logits_E[e])) for e in chosen}
    if spec.normalize:
        whole = sum(weight.values())
        weight = {e: w / whole for e, w in weight.items()}
    y_D = torch.zeros_like(x_D)
    for e in chosen:
        if spec.expert == "glu":
            inner = spec.inner
            gate, up = experts.gate_up.weight[e, :inner] @ x_D, experts.gate_up.weight[e, inner:] @ x_D
            said = experts.output.weight[e] @ (F.silu(gate) * up)
        else:
            assert experts.input.bias is not None
            assert experts.output.bias is not None
            inside = F.relu(experts.input.weight[e] @ x_D + experts.input.bias[e])
            said = experts.output.weight[e] @ inside + experts.output.bias[e]
        y_D = y_D + spec.scale * weight[e] * said
    if moe.shared is not None:
        gate = 1.0 if moe.shared_gate is None else torch.sigmoid(moe.shared_gate.weight[0] @ x_D)
        y_D = y_D + gate * moe.shared(x_D)
    return y_D


@pytest.mark.parametrize("name", SPECS)
def test_equals_a_loop_over_places_with_gradients(name: str) -> None:
    moe, x = make(name), places().requires_grad_()
    slope = places(seed=2)
    weights = {"x": x, **dict(moe.named_parameters())}
    y = moe(x)
    expected = torch.stack([torch.stack([one_place(moe, x_D) for x_D in row]) for row in x])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad((y * slope).sum(), list(weights.values()))
    wanted = torch.autograd.grad((expected * slope).sum(), list(weights.values()))
    for weight, one, two in zip(weights, found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12, msg=f"gradient of {weight}")
        if name != "switch" or weight != "router.weight":
            assert two.abs().max() > 1e-3, weight


def test_numeric_gradients() -> None:
    moe, x = make("deepseek"), places(1, 3).requires_grad_()
    router = moe.router.weight.detach().clone().requires_grad_()

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(moe, {"router.weight": weight}, (x,))

    assert torch.autograd.gradcheck(f, (x, router))
    assert torch.autograd.gradgradcheck(f, (x, router))
