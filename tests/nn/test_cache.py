"""Cached decoding gives what a whole forward gives, however rows are padded, reordered or dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.cache import Cache
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec

TOLERANCE = 1e-5  # fp32 rounding of states of size 1 to 10 over a few layers
POSITIONS = ("none", "learned", "sinusoidal", "rotary", "relative")


def make(kind: str, position: str, **more: Any) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(
        kind=kind, position=position, hidden=32, layers=2, heads=4, kv_heads=2, max_length=64, init_std=0.2,
        cross_rotary=kind == "encoder_decoder" and position == "rotary", **more,
    )  # fmt: skip
    return Model(build_spec(config, 50), {"tokens": TokensHeadSpec()}).eval()


def tokens(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(50, (rows, width), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_cached_equals_uncached(kind: str, position: str, window: int | None) -> None:
    model = make(kind, position, window=window)
    ids = tokens(3, 9)
    batch = {"ids": ids}
    if kind == "encoder_decoder":
        batch |= {
            "source_ids": tokens(3, 8, 1),
            "source_segments": (torch.arange(8) < torch.tensor([[8], [5], [1]])).int(),
        }
    expected = model(batch).hidden_BTD
    cache = Cache(9)
    found = [model({**batch, "ids": ids[:, :4]}, cache=cache).hidden_BTD]
    for start, end in ((4, 5), (5, 8), (8, 9)):  # one column, several, one
        found.append(model({"ids": ids[:, start:end]}, cache=cache).hidden_BTD)
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", POSITIONS)
def test_prompts_padded_on_either_side(position: str, side: str, window: int | None) -> None:
    model = make("decoder", position, window=window)
    lengths, ids, more = [5, 2, 4], tokens(3, 5), tokens(3, 3, seed=2)
    prompt, segments = torch.full((3, 5), 9), torch.zeros(3, 5, dtype=torch.int32)
    for row, length in enumerate(lengths):
        place = slice(5 - length, 5) if side == "left" else slice(0, length)
        prompt[row, place], segments[row, place] = ids[row, :length], 1
    cache = Cache(8)
    model({"ids": prompt, "segments": segments}, cache=cache)
    found = torch.cat([model({"ids": more[:, i : i + 1]}, cache=cache).hidden_BTD for i in range(3)], 1)
    for row, length in enumerate(lengths):
        whole = torch.cat([ids[row, :length], more[row]])[None]
        expected = model({"ids": whole}).hidden_BTD[0, length:]
        torch.testing.assert_close(found[row], expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_finished_rows_may_be_padded_on() -> None:
    model = make("decoder", "rotary")
    ids = tokens(2, 6)
    cache = Cache(6)
    model({"ids": ids[:, :3]}, cache=cache)
    model({"ids": ids[:, 3:4], "segments": torch.tensor([[1], [0]])}, cache=cache)
    found = model({"ids": ids[:, 4:], "segments": torch.tensor([[1, 1], [0, 0]])}, cache=cache).hidden_BTD
    torch.testing.assert_close(found[0], model({"ids": ids[:1]}).hidden_BTD[0, 4:], atol=TOLERANCE, rtol=0)
    assert found.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("position", ["rotary", "relative"])
def test_selected_rows_go_on_as_their_own(position: str) -> None:
    model = make("encoder_decoder", position)
    ids, source = tokens(3, 6), tokens(3, 7, seed=1)
    segments = (torch.arange(7) < torch.tensor([[7], [4], [2]])).int()
    rows = torch.tensor([2, 0, 0])
    cache = Cache(6)
    model({"ids": ids[:, :4], "source_ids": source, "source_segments": segments}, cache=cache)
    cache.select(rows)
    found = model({"ids": ids[rows, 4:]}, cache=cache).hidden_BTD
    expected = model({"ids": ids, "source_ids": source, "source_segments": segments}).hidden_BTD
    torch.testing.assert_close(found, expected[rows, 4:], atol=TOLERANCE, rtol=0)
    cache.select(torch.tensor([1]))
    assert cache.layers[0].keys_BGNK is not None
    assert cache.layers[0].keys_BGNK.shape[0] == 1


@torch.no_grad()
def test_beams_of_one_source_leave_the_source_alone() -> None:
    model = make("encoder_decoder", "rotary")
    ids, source = tokens(2, 5), tokens(1, 7, seed=1).expand(2, 7)
    cache = Cache(5)
    model({"ids": ids[:, :4], "source_ids": source}, cache=cache)
    cross = cache.layers[0].cross
    cache.select(torch.tensor([1, 1]), source=False)
    assert cache.layers[0].cross is cross
    found = model({"ids": ids[[1, 1], 4:]}, cache=cache).hidden_BTD
    expected = model({"ids": ids, "source_ids": source}).hidden_BTD
    torch.testing.assert_close(found, expected[[1, 1], 4:], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_spent_cache_says_so() -> None:
    model = make("decoder", "rotary")
    cache = Cache(4)
    model({"ids": tokens(1, 3)}, cache=cache)
    with pytest.raises(ValueError, match="cache of 4 places cannot take 2 more after 3"):
        model({"ids": tokens(1, 2)}, cache=cache)
