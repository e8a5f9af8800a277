"""Attention against its formula, by loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nalanda.nn.attend import attend, attention_map
from nalanda.nn.attention import SelfAttention
from nalanda.nn.mask import AttentionMask
from nalanda.nn.spec import AttentionSpec, NormSpec


def by_loops(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            for place in range(q.shape[2]):
                score = k[row, head // group] @ q[row, head, place] * scale + bias[row, 0, place]
                if score.max() > -torch.inf:
                    out[row, head, place] = score.softmax(0) @ v[row, head // group]
    return out


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attend_is_the_formula_and_sees_nothing_as_zeros(groups: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, groups, 6, 8), torch.randn(2, groups, 6, 8)
    bias = torch.zeros(2, 1, 5, 6).masked_fill(torch.rand(2, 1, 5, 6) < 0.4, -torch.inf)
    bias[0, 0, 2] = -torch.inf
    mask = AttentionMask(bias)
    found = attend(q, k, v, mask, 0.3)
    torch.testing.assert_close(found, by_loops(q, k, v, bias, 0.3))
    weights = attention_map(q, k, mask, 0.3)
    torch.testing.assert_close(weights @ v.repeat_interleave(4 // groups, 1), found)


def test_causal_order_is_the_triangle() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    bias = torch.full((5, 5), -torch.inf).triu(1).expand(2, 1, 5, 5)
    causal = AttentionMask(causal=True)
    torch.testing.assert_close(attend(q, k, v, causal, 0.3), by_loops(q, k, v, bias, 0.3))
    torch.testing.assert_close(
        attention_map(q, k, causal, 0.3), attention_map(q, k, AttentionMask(bias), 0.3)
    )


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"qk_norm": NormSpec(kind="rms")},
        {"softcap": 1.5},
        {"sinks": True},
        {"softcap": 1.5, "sinks": True},
    ],
)
def test_gradients_in_float64(parts: dict[str, Any]) -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(heads=2, kv_heads=1, head_dim=4, bias=True, **parts)
    attention = SelfAttention(spec, 6).double()
    for parameter in attention.parameters():
        parameter.data.normal_()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    mask = AttentionMask(
        torch.zeros(2, 1, 3, 3, dtype=torch.float64).masked_fill(torch.eye(3) > 0, -torch.inf)
    )
    assert torch.autograd.gradcheck(lambda x: attention(x, mask, None, None, None), (x,))


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(AttentionSpec(heads=2, dropout=0.5), 8)
    torch.nn.init.normal_(attention.qkv.weight)
    torch.nn.init.normal_(attention.output.weight)
    x = torch.randn(1, 6, 8)
    assert not torch.equal(*(attention(x, AttentionMask(), None, None, None) for _ in range(2)))
    attention.eval()
    assert torch.equal(*(attention(x, AttentionMask(), None, None, None) for _ in range(2)))
