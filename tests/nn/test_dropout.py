"""Dropout: the share that is dropped, the mean that is kept, the gradient, the seed."""

from __future__ import annotations

import pytest
import torch

from nalanda.nn.dropout import Dropout, dropout_cpu


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_and_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 401)  # not a multiple of four: the last random word is used in part
    found = dropout_cpu(x, probability)
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert abs((found == 0).double().mean().item() - probability) < 5 * deviation
    assert found.double().mean().item() == pytest.approx(1, abs=5 * deviation / (1 - probability))
    kept = found[found != 0]
    assert torch.all(kept == kept[0])
    for lane in range(4):  # every 16-bit lane of the random words is uniform
        share = (found.flatten()[lane::4] == 0).double().mean().item()
        assert abs(share - probability) < 10 * deviation


def test_gradient_goes_where_values_went() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 7, requires_grad=True)
    found = dropout_cpu(x, 0.3)
    found.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, found.detach())


def test_seed_decides_and_evaluation_drops_nothing() -> None:
    dropout, x = Dropout(0.5), torch.ones(64)
    torch.manual_seed(3)
    one = dropout(x)
    two = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), one)
    assert not torch.equal(one, two)
    assert dropout.eval()(x) is x
