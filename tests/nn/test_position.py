"""Positions against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from nalanda.nn.mask import positions_in_segments
from nalanda.nn.position import buckets, sinusoids
from nalanda.nn.rotary import Rotary, RotarySpec, rotate


def test_rotation_is_a_complex_product() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 0, 1, 100, 3]])
    rotary = Rotary(RotarySpec(theta=500.0), 8).double()
    found = rotate(x, rotary(positions, torch.float64))
    angle = positions[:, :, None, None] * torch.tensor(
        [500.0 ** (-2 * i / 8) for i in range(4)], dtype=torch.float64
    )
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angle)
    torch.testing.assert_close(found, torch.cat([turned.real, turned.imag], -1), atol=1e-5, rtol=0)


def test_rotation_makes_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16)
    rotary = Rotary(RotarySpec(), 16)

    def score(query: int, key: int) -> float:
        one = rotate(q, rotary(torch.tensor([[query]]), torch.float32))
        two = rotate(k, rotary(torch.tensor([[key]]), torch.float32))
        return float((one * two).sum())

    assert score(3, 1) == pytest.approx(score(102, 100), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-2)


def test_rotation_gradients_in_float64() -> None:
    tables = Rotary(RotarySpec(theta=100.0), 4).double()(torch.arange(3)[None], torch.float64)
    x = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, tables), (x,))


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_are_the_papers(width: int) -> None:
    table = sinusoids(9, width)
    assert table.shape == (9, width)
    half = (width + 1) // 2
    for place in range(9):
        for index in range(width):
            angle = place / 10_000 ** (2 * (index % half) / width)
            expected = math.sin(angle) if index < half else math.cos(angle)
            assert table[place, index].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_t5s(bidirectional: bool) -> None:
    count, farthest = 32, 128
    one_way = count // 2 if bidirectional else count
    exact = one_way // 2

    def expected(distance: int) -> int:
        offset = one_way if bidirectional and distance > 0 else 0
        far = abs(distance) if bidirectional else max(-distance, 0)
        if far < exact:
            return offset + far
        place = exact + int(math.log(far / exact) / math.log(farthest / exact) * (one_way - exact) + 1e-6)
        return offset + min(place, one_way - 1)

    distance = torch.arange(-300, 301)
    found = buckets(distance, count, farthest, bidirectional).tolist()
    differ = [d for d, bucket in zip(distance.tolist(), found, strict=True) if bucket != expected(d)]
    assert not [d for d in differ if (abs(d) & (abs(d) - 1)) != 0]  # fp32 logs may round at powers of two
    assert max(found) == count - 1


def test_positions_are_counted_in_each_segment() -> None:
    segments = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 3]])
    assert positions_in_segments(segments).tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 0]]
