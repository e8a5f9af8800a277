"""Norms against their formulas and against PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from nalanda.nn.norm import build_norm, rms_norm_cpu
from nalanda.nn.spec import NormSpec


def test_rms_norm_gradients_in_float64() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm_cpu(x, w, 1e-3), (x, weight))


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 4, 32)])
def test_rms_norm_is_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = build_norm(NormSpec(kind="rms", eps=1e-6), 32)
    x, upstream = torch.randn(shape, requires_grad=True), torch.randn(shape)
    weight = norm.weight.data.normal_().requires_grad_()
    ours, expected = norm(x), torch.nn.functional.rms_norm(x, (32,), weight, 1e-6)
    torch.testing.assert_close(ours, expected)
    found = torch.autograd.grad(ours, (x, norm.weight), upstream)
    for one, two in zip(found, torch.autograd.grad(expected, (x, weight), upstream), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_rms_norm_of_a_transposed_gradient_and_of_zeros() -> None:
    norm = build_norm(NormSpec(kind="rms"), 4)
    x = torch.zeros(3, 2, 4, requires_grad=True)
    norm(x).transpose(0, 1).mul(torch.randn(2, 3, 4)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_statistics_are_fp32_under_bf16(kind: str) -> None:
    norm = build_norm(NormSpec(kind=kind), 64)
    x = (torch.randn(4, 64) * 50 + 300).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, norm(x.float()))


def test_layer_norm_without_bias() -> None:
    norm = build_norm(NormSpec(bias=False), 8)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    found = norm(torch.randn(5, 8))
    torch.testing.assert_close(found.mean(-1), torch.zeros(5), atol=1e-6, rtol=0)
