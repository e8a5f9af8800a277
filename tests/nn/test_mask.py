"""Which mask and which backend is chosen; prefixes, packing, padding and caches through a whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nalanda.nn import mask as masks
from nalanda.nn.cache import Cache
from nalanda.nn.mask import Needs, Places, Sight, choose_backend, cross_mask, self_masks
from nalanda.nn.model import Model
from nalanda.nn.spec import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    NormSpec,
    PositionSpec,
    Spec,
    TokensHeadSpec,
)

TOLERANCE = 1e-5  # fp32 rounding of states of size 1 to 10 over a few layers
FP32, BF16 = torch.float32, torch.bfloat16


def places(width: int, rows: int = 1, segments: bool = False) -> Places:
    positions = torch.arange(width)[None].expand(rows, width)
    return Places(torch.ones_like(positions) if segments else None, positions)


def test_what_needs_no_mask_gets_none() -> None:
    whole = places(6)
    assert self_masks(whole, whole, True, {None}, None, FP32)[None].causal
    assert self_masks(whole, whole, True, {None}, None, FP32)[None].bias is None
    both_ways = self_masks(whole, whole, False, {None}, None, FP32)[None]
    assert both_ways.bias is None
    assert not both_ways.causal
    # A window as wide as the text hides nothing; one mask serves all that say the same.
    wide = self_masks(whole, whole, True, {None, 6, 9}, None, FP32)
    assert wide[6] is wide[9] is wide[None]
    assert wide[6].causal
    step = self_masks(Places(None, torch.tensor([[5]])), whole, True, {None, 6}, None, FP32)
    assert step[None].bias is None
    assert step[6].bias is None
    assert not step[None].causal
    assert cross_mask(places(2), whole, FP32).bias is None


def test_masks_are_no_bigger_than_they_must_be() -> None:
    whole = places(6, rows=3)
    assert self_masks(whole, whole, True, {2}, None, FP32)[2].bias.shape == (1, 1, 6, 6)
    chunk = Places(None, whole.positions_BT[:, 4:])
    assert self_masks(chunk, whole, True, {None}, None, FP32)[None].bias.shape == (1, 1, 2, 6)
    packed = places(6, rows=3, segments=True)
    assert self_masks(packed, packed, True, {None}, None, FP32)[None].bias.shape == (3, 1, 6, 6)
    learned = torch.zeros(1, 4, 6, 6)
    assert self_masks(whole, whole, True, {None}, learned, FP32)[None].bias.shape == (1, 4, 6, 6)
    assert self_masks(packed, packed, True, {None}, learned, FP32)[None].bias.shape == (3, 4, 6, 6)


def choice(width: int, keys: int, dtype: torch.dtype, **more: Any) -> str:
    key = places(keys, segments=more.pop("segments", False))
    query = key if width == keys else Places(key.segments_BT, key.positions_BT[:, -width:])
    learned = more.pop("learned", None)
    return choose_backend(
        Sight(query, key, more.pop("causal", width > 1), more.pop("window", None)),
        learned,
        dtype,
        Needs(**more),
    )


def test_backends_on_a_cpu() -> None:
    for width, keys in ((1, 8), (64, 64), (2048, 2048)):
        assert choice(width, keys, FP32) == "sdpa"
        assert choice(width, keys, FP32, scores=True) == "manual"
    for longest, causal in ((masks.ORDERED_UP_TO, True), (masks.MANUAL_UP_TO, False)):
        assert choice(longest, longest, BF16, causal=causal) == "manual"
        assert choice(longest, longest, BF16, causal=causal, segments=True) == "manual"
        assert choice(longest + 1, longest + 1, BF16, causal=causal) == "sdpa"
    for kind in (FP32, BF16):
        assert choice(4096, 4096, kind, window=2048) == "manual"
        assert (
            choice(4096, 4096, kind, window=2049)
            == choice(4096, 4096, kind, causal=False, window=9)
            == "sdpa"
        )
    assert choice(1, 5000, BF16) == "manual"
    bias = torch.zeros(1, 2, 8, 8)
    assert choice(2048, 2048, BF16, learned=bias) == "sdpa"
    assert choice(2048, 2048, FP32, learned=bias.requires_grad_()) == "manual"


def test_backends_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_kind", lambda places: "cuda")
    assert choice(512, 512, BF16) == "sdpa"
    assert choice(512, 512, BF16, segments=True) == "flex"
    assert choice(512, 512, FP32, window=64) == "flex"
    assert choice(512, 512, BF16, scores=True) == "flex"
    assert choice(512, 512, BF16, segments=True, dropout=True) == "sdpa"
    assert choice(512, 512, BF16, scores=True, dropout=True) == "manual"
    assert choice(512, 512, BF16, segments=True, dim=8) == "sdpa"
    assert choice(64, 64, BF16, segments=True) == "sdpa"
    assert choice(1, 512, BF16, segments=True) == "sdpa"


def make(position: str = "rotary", window: int | None = None, causal: bool = True, **more: Any) -> Model:
    torch.manual_seed(0)
    rotary = {} if position == "rotary" else None
    attention = AttentionSpec.model_validate(
        dict(heads=4, kv_heads=2, bias=True, rotary=rotary, window=window, **more)
    )
    block = BlockSpec(attention=attention, feedforward=FeedForwardSpec(inner=48), norm=NormSpec(kind="rms"))
    stack = {
        "decoder" if causal else "encoder": (block, block),
        "decoder_position" if causal else "encoder_position": PositionSpec(
            kind="none" if position == "rotary" else position,
            max_length=32,  # type: ignore[arg-type]
        ),
    }
    model = Model(Spec(vocabulary=50, hidden=32, init_std=0.2, **stack), {"tokens": TokensHeadSpec()}).eval()  # type: ignore[arg-type]
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(weight)
    return model


def tokens(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(50, (rows, width), generator=torch.Generator().manual_seed(seed))


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, atol=TOLERANCE, rtol=0)


PARTS: list[dict[str, Any]] = [
    {},
    {"window": 4},
    {"softcap": 2.0},
    {"sinks": True},
    {"softcap": 2.0, "sinks": True},
]


@torch.no_grad()
def test_a_prefix_of_everything_is_an_encoder() -> None:
    decoder, encoder = make(), make(causal=False)
    encoder.load_state_dict({k.replace("decoder", "encoder"): v for k, v in decoder.state_dict().items()})
    ids = tokens(2, 8)
    close(
        decoder({"ids": ids, "prefix": torch.ones_like(ids).bool()}).hidden_BTD,
        encoder({"ids": ids}).hidden_BTD,
    )
    with pytest.raises(ValueError, match="prefix_BT is for decoders"):
        encoder({"ids": ids, "prefix": torch.ones_like(ids).bool()})


@torch.no_grad()
@pytest.mark.parametrize("position", ["rotary", "learned", "relative"])
@pytest.mark.parametrize("parts", PARTS)
def test_prefix_packed_padded_and_alone(position: str, parts: dict[str, Any]) -> None:
    model = make(position, **parts)
    ids, prefix = (
        tokens(2, 9),
        torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0]]).bool(),
    )
    segments = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1]])
    hidden = model({"ids": ids, "segments": segments, "prefix": prefix}).hidden_BTD
    for row, place in ((0, slice(0, 4)), (0, slice(4, 8)), (1, slice(2, 9))):
        alone = {"ids": ids[row : row + 1, place], "prefix": prefix[row : row + 1, place]}
        close(hidden[row : row + 1, place], model(alone).hidden_BTD)
        other = model({"ids": alone["ids"]}).hidden_BTD  # the prefix matters
        assert (hidden[row : row + 1, place] - other).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("parts", PARTS)
def test_prompts_as_prefixes_in_a_cache(side: str, parts: dict[str, Any]) -> None:
    model = make(**parts)
    lengths, ids, more = [5, 2, 4], tokens(3, 5), tokens(3, 3, seed=2)
    prompt, segments = torch.full((3, 5), 9), torch.zeros(3, 5, dtype=torch.int32)
    for row, length in enumerate(lengths):
        place = slice(5 - length, 5) if side == "left" else slice(0, length)
        prompt[row, place], segments[row, place] = ids[row, :length], 1
    cache = Cache(8)
    model({"ids": prompt, "segments": segments, "prefix": segments > 0}, cache=cache)
    found = torch.cat([model({"ids": more[:, i : i + 1]}, cache=cache).hidden_BTD for i in range(3)], 1)
    for row, length in enumerate(lengths):
        whole = torch.cat([ids[row, :length], more[row]])[None]
        expected = model({"ids": whole, "prefix": torch.arange(length + 3)[None] < length}).hidden_BTD
        close(found[row], expected[0, length:])


@torch.no_grad()
def test_a_second_turn_may_have_its_own_prefix() -> None:
    model = make()
    ids, prefix = tokens(2, 8), torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 0]]).bool()
    cache = Cache(8)
    first = model({"ids": ids[:, :3]}, cache=cache).hidden_BTD
    second = model({"ids": ids[:, 3:], "prefix": prefix[:, 3:]}, cache=cache).hidden_BTD
    close(first, model({"ids": ids[:, :3]}).hidden_BTD)
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    cache = Cache(8)
    model({"ids": ids[:, :3]}, cache=cache)
    other = model({"ids": changed[:, 3:], "prefix": prefix[:, 3:]}, cache=cache).hidden_BTD
    assert ((second - other).abs().amax(-1) > 1e-3).all()  # all new columns see column 5, earlier ones too


@torch.no_grad()
@pytest.mark.parametrize("parts", PARTS)
def test_rows_do_not_depend_on_their_neighbours(parts: dict[str, Any]) -> None:
    model = make(**parts)
    ids = tokens(3, 7)
    segments = (torch.arange(7) < torch.tensor([[7], [4], [2]])).int()
    hidden = model({"ids": ids, "segments": segments}).hidden_BTD
    for row, length in enumerate((7, 4, 2)):
        close(hidden[row, :length], model({"ids": ids[row : row + 1, :length]}).hidden_BTD[0])


@torch.no_grad()
def test_captured_maps_know_caps_and_sinks() -> None:
    plain, capped = make(), make(softcap=0.05)
    capped.load_state_dict(plain.state_dict())
    ids = tokens(1, 6)

    def first(model: Model) -> Tensor:
        return model({"ids": ids}, capture=("attention",)).captured["decoder.attention"][0]

    even = (torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]).expand(1, 4, 6, 6)
    assert (first(plain) - even).abs().max() > 0.1
    assert (first(capped) - even).abs().max() < 0.03  # scores within +-0.05 give nearly even weights
    close(first(plain).sum(-1), torch.ones(1, 4, 6))
    assert (first(make(sinks=True)).sum(-1) < 0.99).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("backend", ["sdpa", "manual"])
def test_training_forward_is_one_graph(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """fullgraph raises at a graph break, and error_on_recompile at a shape that needs another graph."""
    monkeypatch.setattr(masks, "choose_backend", lambda *_: backend)
    model = make(window=4, softcap=2.0, sinks=True).train()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
    for rows, width in ((3, 9), (5, 12)):
        segments = torch.ones(rows, width, dtype=torch.int32)
        batch = {"ids": tokens(rows, width), "segments": segments, "prefix": segments.cumsum(1) < 3}
        batch["positions"] = segments.cumsum(1).int() - 1
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(batch).hidden_BTD.square().sum().backward()
    torch.compiler.reset()


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_flex_inside_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"ids": tokens(2, 9), "segments": torch.tensor([[1] * 5 + [2] * 4, [1] * 7 + [0] * 2])}
    model = make(window=4, softcap=2.0, sinks=True)
    expected = model(batch).hidden_BTD
    monkeypatch.setattr(masks, "choose_backend", lambda *_: "flex")
    torch.compiler.reset()
    close(torch.compile(model, backend="eager", fullgraph=True)(batch).hidden_BTD, expected)
    torch.compiler.reset()
