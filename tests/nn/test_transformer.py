"""What a row holds beside a document never changes it: packing, padding, batching; gradients, compilation, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nalanda.base.errors import DataError
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import SequenceHeadSpec, TokensHeadSpec

POSITIONS = ("none", "learned", "sinusoidal", "rotary", "relative")
TOLERANCE = 1e-5  # fp32 rounding of states of size 1 to 10 over a few layers


def make(kind: str, position: str = "rotary", **more: Any) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(
        kind=kind, position=position, hidden=32, layers=2, heads=4, kv_heads=2, max_length=64, init_std=0.2,
        cross_rotary=kind == "encoder_decoder" and position == "rotary", **more,
    )  # fmt: skip
    model = Model(build_spec(config, 50), {"tokens": TokensHeadSpec(), "labels": SequenceHeadSpec(classes=3)})
    return model.eval()


def tokens(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(50, (rows, width), generator=torch.Generator().manual_seed(seed))


def packed(kind: str) -> dict[str, Tensor]:
    """Two rows; the first holds documents of 4 and 3 tokens and padding."""
    batch = {"ids": tokens(2, 9), "segments": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * 9])}
    if kind == "encoder_decoder":
        batch["source_ids"] = tokens(2, 8, seed=1)
        batch["source_segments"] = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0], [1] * 8])
    return batch


def documents(kind: str) -> list[dict[str, Tensor]]:
    """The two documents of `packed`'s first row, each alone."""
    whole = packed(kind)
    places = [(slice(0, 4), slice(0, 3)), (slice(4, 7), slice(3, 7))]
    found = []
    for own, source in places:
        alone = {"ids": whole["ids"][:1, own]}
        if kind == "encoder_decoder":
            alone["source_ids"] = whole["source_ids"][:1, source]
        found.append(alone)
    return found


@torch.no_grad()
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
def test_packed_equals_separate_and_leaks_nothing(kind: str, position: str) -> None:
    model = make(kind, position)
    batch = packed(kind)
    hidden = model(batch).hidden_BTD
    for place, alone in zip((slice(0, 4), slice(4, 7)), documents(kind), strict=True):
        torch.testing.assert_close(hidden[:1, place], model(alone).hidden_BTD, atol=TOLERANCE, rtol=0)
    changed = {key: value.clone() for key, value in batch.items()}
    changed["ids"][0, 4:] = (changed["ids"][0, 4:] + 7) % 50
    if kind == "encoder_decoder":
        changed["source_ids"][0, 3:] = (changed["source_ids"][0, 3:] + 7) % 50
    other = model(changed).hidden_BTD
    assert torch.equal(hidden[0, :4], other[0, :4])
    assert torch.equal(hidden[1], other[1])
    assert not torch.equal(hidden[0, 4:7], other[0, 4:7])


@torch.no_grad()
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize(("left", "right"), [(0, 5), (5, 0), (2, 9)])
def test_padding_changes_nothing(kind: str, position: str, left: int, right: int) -> None:
    model = make(kind, position)
    ids, source = tokens(3, 6), tokens(3, 7, seed=1)
    batch = {"ids": ids} | ({"source_ids": source} if kind == "encoder_decoder" else {})
    expected = model(batch)
    padded = {}
    for key, value in batch.items():
        prefix = key.removesuffix("ids")
        padded[key] = torch.nn.functional.pad(value, (left, right), value=3)
        padded[f"{prefix}segments"] = torch.nn.functional.pad(torch.ones_like(value), (left, right)).int()
    found = model(padded)
    torch.testing.assert_close(
        found.hidden_BTD[:, left : left + 6], expected.hidden_BTD, atol=TOLERANCE, rtol=0
    )
    one = model.logits(found.hidden_BTD, "labels", padded["segments"])
    torch.testing.assert_close(one, model.logits(expected.hidden_BTD, "labels"), atol=TOLERANCE, rtol=0)
    solo = [model({key: value[i : i + 1] for key, value in batch.items()}).hidden_BTD for i in range(3)]
    torch.testing.assert_close(torch.cat(solo), expected.hidden_BTD, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("position", ["rotary", "relative"])
def test_fully_padded_rows_stay_finite(position: str) -> None:
    model = make("encoder_decoder", position).train()
    batch = packed("encoder_decoder")
    batch["segments"][1] = 0
    batch["source_segments"][:] = 0  # row 0 has documents without any source
    hidden = model(batch).hidden_BTD
    assert hidden.isfinite().all()
    hidden.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_decoder_does_not_look_ahead_and_encoder_does() -> None:
    ids = tokens(1, 8)
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    for kind, sees in (("decoder", False), ("encoder", True)):
        for segments in (None, torch.tensor([[1] * 7 + [0]])):
            model = make(kind)
            one, two = (model.transformer(x, segments).hidden_BTD for x in (ids, changed))
            assert torch.equal(one[:, :5], two[:, :5]) is not sees


@torch.no_grad()
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_window_limits_what_one_layer_sees(kind: str) -> None:
    model = make(kind, window=3)
    found = model.transformer(tokens(1, 8), capture=("attention",)).captured[f"{kind}.attention"]
    column = torch.arange(8)
    distance = column - column[:, None]
    near = (distance.abs() < 3) & ((distance <= 0) | torch.tensor(kind == "encoder"))
    assert torch.equal(found[0][0, 0] > 0, near)


@torch.no_grad()
def test_capture_and_inputs_embeds() -> None:
    model = make("encoder_decoder")
    batch = packed("encoder_decoder")
    found = model(batch, capture=("residuals", "attention", "cross_attention")).captured
    assert set(found) == {
        "encoder.residuals", "encoder.attention", "encoder.cross_attention",
        "decoder.residuals", "decoder.attention", "decoder.cross_attention",
    }  # fmt: skip
    assert [len(found[f"decoder.{kind}"]) for kind in ("residuals", "attention", "cross_attention")] == [
        3,
        2,
        2,
    ]
    assert found["encoder.cross_attention"] == []
    maps = found["decoder.cross_attention"][0]
    assert maps.shape == (2, 4, 9, 8)
    torch.testing.assert_close(maps[0, :, :7].sum(-1), torch.ones(4, 7))
    ids = batch.pop("ids")
    arguments = {f"{key}_BS" if "source" in key else f"{key}_BT": value for key, value in batch.items()}
    vectors = model.transformer.tokens(ids)
    one = model.transformer(None, inputs_embeds_BTD=vectors, **arguments).hidden_BTD
    assert torch.equal(one, model.transformer(ids, **arguments).hidden_BTD)
    with pytest.raises(ValueError, match="capture knows"):
        model.transformer(ids, capture=("logits",))
    with pytest.raises(ValueError, match="either ids_BT or inputs_embeds_BTD"):
        model.transformer(ids, inputs_embeds_BTD=vectors)
    with pytest.raises(ValueError, match="needs the source"):
        model.transformer(ids)


def test_positions_beyond_the_table_are_a_clear_error() -> None:
    with pytest.raises(DataError, match="65 tokens is longer than the 64 positions of the model's encoder"):
        make("encoder", "learned").transformer(tokens(1, 65))
    assert make("encoder", "rotary").transformer(tokens(1, 65)).hidden_BTD.isfinite().all()


@torch.no_grad()
def test_bf16_compute_is_close_and_keeps_masters() -> None:
    for norm in ("layer", "rms"):
        model = make("encoder_decoder", norm=norm, qk_norm=True)
        batch = packed("encoder_decoder")
        expected = model(batch).hidden_BTD
        with torch.autocast("cpu", torch.bfloat16):
            found = model(batch).hidden_BTD
        assert found.dtype == torch.float32  # the residual stream and the norms
        assert all(p.dtype == torch.float32 for p in model.parameters())
        difference = (found - expected).norm() / expected.norm()
        assert 1e-4 < difference < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "position"), [("encoder", "learned"), ("decoder", "rotary"), ("encoder_decoder", "relative")]
)
def test_training_forward_is_one_graph_for_all_shapes(kind: str, position: str) -> None:
    """fullgraph raises at a graph break, and error_on_recompile at a shape that needs another graph."""
    model = make(kind, position, norm="rms", dropout=0.1).train()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
    for rows, width in ((3, 9), (5, 12)):
        segments = torch.ones(rows, width, dtype=torch.int32)
        batch = {"ids": tokens(rows, width), "segments": segments, "positions": segments.cumsum(1).int() - 1}
        if kind == "encoder_decoder":
            batch |= {
                "source_ids": tokens(rows, width + 2),
                "source_segments": torch.ones(rows, width + 2).int(),
            }
            batch["source_positions"] = batch["source_segments"].cumsum(1).int() - 1
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(batch).hidden_BTD.square().sum().backward()
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager() -> None:
    model = make("decoder", norm="rms")
    batch = packed("decoder")
    torch.compiler.reset()
    compiled = torch.compile(model, dynamic=True, fullgraph=True)
    torch.testing.assert_close(compiled(batch).hidden_BTD, model(batch).hidden_BTD, atol=TOLERANCE, rtol=0)
    torch.compiler.reset()
