"""Rotations of every scaling against transformers' frequencies and magnitudes; ntk by its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nalanda.nn.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NtkScaling,
    Rotary,
    RotaryScaling,
    RotarySpec,
    YarnScaling,
    plain_frequencies,
    rotate,
)

# Both are worked out in fp32; the largest relative difference was 1.3e-6 while ours was in fp64 (yarn: a ramp near
# its end, times 40).
RELATIVE = 2e-6
SIZES = [(64, 10_000.0), (128, 500_000.0), (20, 1_000_000.0)]


def theirs(
    dim: int, theta: float, length: int | None, trained: int, **parameters: Any
) -> tuple[Tensor, float]:
    config = LlamaConfig(
        hidden_size=4 * dim,
        num_attention_heads=4,
        head_dim=dim,
        max_position_embeddings=trained,
        rope_parameters={"rope_theta": theta, **parameters},
    )
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)


def check(
    spec: RotaryScaling, dim: int, theta: float, length: int | None, expected: tuple[Tensor, float]
) -> None:
    found = spec.frequencies(theta, dim, length)
    torch.testing.assert_close(found, expected[0], rtol=RELATIVE, atol=0)
    assert Rotary(RotarySpec(theta=theta, scaling=spec), dim).magnitude == pytest.approx(
        expected[1], rel=1e-12
    )


@pytest.mark.parametrize(("dim", "theta"), SIZES)
@pytest.mark.parametrize("factor", [1.0, 2.5, 8.0])
def test_linear(dim: int, theta: float, factor: float) -> None:
    check(
        LinearScaling(factor=factor),
        dim,
        theta,
        None,
        theirs(dim, theta, None, 512, rope_type="linear", factor=factor),
    )


@pytest.mark.parametrize(("dim", "theta"), SIZES)
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("length", [None, 10, 512, 513, 3000])
def test_dynamic(dim: int, theta: float, factor: float, length: int | None) -> None:
    spec = DynamicScaling(factor=factor, original_length=512)
    check(spec, dim, theta, length, theirs(dim, theta, length, 512, rope_type="dynamic", factor=factor))


@pytest.mark.parametrize(("dim", "theta"), SIZES)
@pytest.mark.parametrize("factor", [1.0, 4.0, 40.0])
@pytest.mark.parametrize(
    "more",
    [{}, {"truncate": False}, {"attention_factor": 1.3}, {"beta_fast": 16.0, "beta_slow": 2.0}],
    ids=["plain", "untruncated", "attention factor", "betas"],
)
@pytest.mark.parametrize("original", [3, 32, 4096])
def test_yarn(dim: int, theta: float, factor: float, more: dict[str, Any], original: int) -> None:
    spec = YarnScaling(factor=factor, original_length=original, **more)
    given = {"factor": factor, "original_max_position_embeddings": original, **more}
    check(spec, dim, theta, None, theirs(dim, theta, None, int(original * factor), rope_type="yarn", **given))


@pytest.mark.parametrize(("dim", "theta"), SIZES)
@pytest.mark.parametrize(
    ("factor", "low", "high", "original"), [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 256), (2.0, 0.5, 3.0, 64)]
)
def test_llama3(dim: int, theta: float, factor: float, low: float, high: float, original: int) -> None:
    spec = Llama3Scaling(
        factor=factor, original_length=original, low_frequency_factor=low, high_frequency_factor=high
    )
    given = {
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    check(spec, dim, theta, None, theirs(dim, theta, None, 4 * original, rope_type="llama3", **given))


@pytest.mark.parametrize(("dim", "theta"), SIZES)
@pytest.mark.parametrize("length", [None, 64, 65, 200])
@pytest.mark.parametrize("attention_factor", [1.0, 1.19])
def test_longrope(dim: int, theta: float, length: int | None, attention_factor: float) -> None:
    short = tuple(1 + i / dim for i in range(dim // 2))
    long = tuple(1.0 + 3 * i for i in range(dim // 2))
    spec = LongRopeScaling(short=short, long=long, original_length=64, attention_factor=attention_factor)
    given = {
        "short_factor": list(short),
        "long_factor": list(long),
        "original_max_position_embeddings": 64,
        "factor": 4.0,
        "attention_factor": attention_factor,
    }
    check(spec, dim, theta, length, theirs(dim, theta, length, 256, rope_type="longrope", **given))
    with pytest.raises(ValueError, match=f"longrope: {dim // 2} factors for {dim // 2 + 1} rotations"):
        spec.frequencies(theta, dim + 2, None)


@pytest.mark.parametrize(("dim", "theta"), SIZES)
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_ntk(dim: int, theta: float, factor: float) -> None:
    """The fastest rotation stays, the slowest is slowed by the factor, between them all by equal ratios."""
    ratio = plain_frequencies(theta, dim) / NtkScaling(factor=factor).frequencies(theta, dim, None)
    expected = factor ** (torch.arange(dim // 2, dtype=torch.float64) / (dim // 2 - 1))
    torch.testing.assert_close(ratio.double(), expected, rtol=RELATIVE, atol=0)


def test_tables_follow_the_lengths_of_texts_and_the_magnitude() -> None:
    positions = torch.tensor([[0, 1, 2], [7, 8, 9]])
    dynamic = Rotary(RotarySpec(scaling=DynamicScaling(factor=2.0, original_length=4)), 8)
    tables = dynamic(positions, torch.float32)
    grown = DynamicScaling(factor=2.0, original_length=4).frequencies(10_000.0, 8, 10)
    for row, frequency in enumerate((plain_frequencies(10_000.0, 8), grown)):
        angle = positions[row, :, None, None] * frequency
        torch.testing.assert_close(tables[0][row], angle.cos())
        torch.testing.assert_close(tables[1][row], angle.sin())
    yarn = Rotary(RotarySpec(scaling=YarnScaling(factor=4.0, original_length=4, attention_factor=1.5)), 8)
    x = torch.randn(2, 3, 1, 8)
    turned = rotate(x, yarn(positions, torch.float32))
    torch.testing.assert_close(turned.norm(dim=-1), 1.5 * x.norm(dim=-1))


@pytest.mark.parametrize(
    "scaling",
    [
        DynamicScaling(factor=4.0, original_length=4),
        LongRopeScaling(short=(1.0,) * 4, long=(2.0, 3.0, 4.0, 5.0), original_length=4),
    ],
)
def test_each_document_turns_by_its_own_length(scaling: RotaryScaling) -> None:
    """Padded on the left, packed two in a row, and alone: the same tables."""
    rotary = Rotary(RotarySpec(scaling=scaling), 8)
    short, long = torch.arange(3)[None], torch.arange(9)[None]
    alone = [rotary(positions, torch.float32)[0][0] for positions in (short, long)]
    assert not torch.equal(alone[0], alone[1][:3])
    packed = rotary(torch.cat([short, long], 1), torch.float32)[0][0]
    assert torch.equal(packed, torch.cat(alone))
    padded = rotary(
        torch.cat([torch.cat([torch.zeros(1, 6, dtype=torch.int64), short], 1), long]), torch.float32
    )
    assert torch.equal(padded[0][0, 6:], alone[0])
    assert torch.equal(padded[0][1], alone[1])
