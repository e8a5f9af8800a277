"""The chunked cross-entropy equals torch's, in value and gradient, however it is chunked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nalanda.objectives.cross_entropy import linear_cross_entropy, rows_per_chunk

N, V, D = 23, 11, 5


def inputs(kind: torch.dtype = torch.float64, scale: float = 1.0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        "hidden": (torch.randn(N, D, generator=draw, dtype=kind) * scale).requires_grad_(),
        "weight": torch.randn(V, D, generator=draw, dtype=kind).requires_grad_(),
        "bias": torch.randn(V, generator=draw, dtype=kind).requires_grad_(),
        "targets": torch.randint(V, (N,), generator=draw),
        "row_weight": torch.rand(N, generator=draw, dtype=kind),
    }


def plain(x: dict[str, Tensor], smoothing: float, z_loss: float, softcap: float | None = None) -> Tensor:
    logits = x["hidden"] @ x["weight"].T + x["bias"]
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    rows = F.cross_entropy(logits, x["targets"], reduction="none", label_smoothing=smoothing)
    return ((rows + z_loss * logits.logsumexp(-1).square()) * x["row_weight"]).sum()


def chunked(
    x: dict[str, Tensor], chunk: int | None = 7, **options: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    return linear_cross_entropy(
        x["hidden"], x["weight"], x["bias"], x["targets"], x["row_weight"], chunk=chunk, **options
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [1, 7, N, None])
def test_value_and_gradient_are_torchs(
    smoothing: float, z_loss: float, softcap: float | None, chunk: int | None
) -> None:
    x, y = inputs(), inputs()
    expected = plain(x, smoothing, z_loss, softcap)
    (3 * expected).backward()
    loss, nll, correct = chunked(y, chunk, label_smoothing=smoothing, z_loss=z_loss, softcap=softcap)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for name in ("hidden", "weight", "bias"):
        torch.testing.assert_close(y[name].grad, x[name].grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(nll, plain(x, 0.0, 0.0, softcap), rtol=1e-12, atol=1e-12)
    logits = x["hidden"] @ x["weight"].T + x["bias"]
    right = (logits.argmax(-1) == x["targets"]).double() * x["row_weight"]
    torch.testing.assert_close(correct, right.sum())


def test_gradcheck() -> None:
    x = inputs()

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden,
            weight,
            bias,
            x["targets"],
            x["row_weight"],
            label_smoothing=0.2,
            z_loss=0.05,
            softcap=1.5,
            chunk=4,
        )[0]

    assert torch.autograd.gradcheck(loss, (x["hidden"], x["weight"], x["bias"]))


def test_only_what_needs_a_gradient_gets_one() -> None:
    x = inputs()
    frozen = {**x, "weight": x["weight"].detach(), "bias": x["bias"].detach()}
    chunked(frozen)[0].backward()
    assert x["hidden"].grad is not None
    with torch.no_grad():
        loss, _, _ = chunked(x)
    assert not loss.requires_grad


def test_far_apart_logits_stay_finite() -> None:
    x = inputs(torch.float32, scale=1e4)
    loss, nll, _ = chunked(x)
    loss.backward()
    expected = plain(inputs(torch.float32, scale=1e4), 0.0, 0.0)
    torch.testing.assert_close(nll, expected.detach(), rtol=1e-6, atol=0.0)
    assert torch.isfinite(x["weight"].grad).all()


def test_no_rows_is_zero() -> None:
    x = inputs()
    empty = {
        name: value[:0] if name in ("hidden", "targets", "row_weight") else value for name, value in x.items()
    }
    loss, nll, correct = chunked(empty)
    loss.backward()
    assert loss.detach() == nll == correct == 0.0
    assert x["weight"].grad is not None
    assert not x["weight"].grad.any()


def test_autocast_computes_products_in_bf16_and_sums_in_fp32() -> None:
    x, y = inputs(torch.float32), inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _, _ = chunked(x)
    loss.backward()
    exact, _, _ = chunked(y)
    exact.backward()
    assert loss.dtype == torch.float32
    assert x["weight"].grad is not None
    assert x["weight"].grad.dtype == torch.float32
    assert loss.detach() != exact.detach()  # the products did run in bf16 ...
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0.0)  # ... which has 8 bits
    torch.testing.assert_close(x["weight"].grad, y["weight"].grad, rtol=0.1, atol=0.1)


def test_never_more_than_a_chunk_of_logits() -> None:
    assert rows_per_chunk(1_000, torch.device("cpu")) * 1_000 <= 2**21
    assert rows_per_chunk(10**9, torch.device("cpu")) == 256
