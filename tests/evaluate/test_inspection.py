"""The numbers of `nalanda inspect` against the same numbers worked out another way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from nalanda.base.errors import DataError
from nalanda.evaluate.inspection import Inspection, Limits, Reading, inspect
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec, TokensHeadSpec

VOCABULARY = 20
STREAM, SOURCE = (1, 7, 5, 9, 7, 12), (3, 8, 11, 4, 2)
HEAD = {"tokens": TokensHeadSpec(bias=True)}


class Letters:
    """Ids 0 to 4 are special, 4 the mask; the others letters."""

    vocabulary, pad, bos, eos, mask, special_ids = VOCABULARY, 0, 1, 2, 4, frozenset(range(5))

    def token(self, number: int) -> str:
        return f"<{number}>" if number in self.special_ids else chr(ord("a") + number - 5)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(self.token(i) for i in ids)


def build(kind: str, heads: dict[str, HeadSpec] | None = None, **changes: Any) -> Model:
    torch.manual_seed(5)
    options = {"layers": 3, "hidden": 16, "heads": 2, "position": "learned", "max_length": 24, "bias": True}
    config = ModelConfig.model_validate({"kind": kind, "init_std": 0.4, **options, **changes})
    return Model(build_spec(config, VOCABULARY), HEAD if heads is None else heads).eval()


def look(model: Model, limits: Limits | None = None, **reading: Any) -> Inspection:
    source = SOURCE if model.transformer.both else ()
    full = Reading(**{"stream": STREAM, "source": source, **reading})
    return inspect(model, Letters(), full, limits or Limits())


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def normed(x_TD: np.ndarray, norm: Any) -> np.ndarray:
    x_TD = (x_TD - x_TD.mean(-1, keepdims=True)) / np.sqrt(x_TD.var(-1, keepdims=True) + norm.eps)
    return x_TD * array(norm.weight) + array(norm.bias)


def softmax(score: np.ndarray) -> np.ndarray:
    raised = np.exp(score - score.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def heads_of(x_TD: np.ndarray, heads: int = 2) -> np.ndarray:
    return x_TD.reshape(len(x_TD), heads, -1).transpose(1, 0, 2)


def by_hand(model: Model, side: str, ids: Sequence[int], causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Layer 1 of pre-norm: the attention map H x T x T, and the stream behind the attention T x D, in float64."""
    stack: Any = getattr(model.transformer, side)
    block = stack.blocks[0]
    x_TD = array(model.transformer.tokens.weight)[list(ids)]
    x_TD = x_TD + array(stack.embed.positions.table.weight)[: len(ids)]
    qkv = normed(x_TD, block.attention_norm) @ array(block.attention.qkv.weight).T + array(
        block.attention.qkv.bias
    )
    q, k, v = (heads_of(part) for part in np.split(qkv, 3, axis=1))
    score = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    if causal:
        score = np.where(np.tril(np.ones(score.shape[1:], dtype=bool)), score, -np.inf)
    weights = softmax(score)
    added = (weights @ v).transpose(1, 0, 2).reshape(len(ids), -1)
    return weights, x_TD + added @ array(block.attention.output.weight).T + array(block.attention.output.bias)


@pytest.mark.parametrize(
    ("kind", "side", "causal"),
    [("encoder", "encoder", False), ("decoder", "decoder", True), ("encoder_decoder", "encoder", False),
     ("encoder_decoder", "decoder", True)],
)  # fmt: skip
def test_self_attention_is_the_softmax_of_queries_and_keys(kind: str, side: str, causal: bool) -> None:
    model = build(kind)
    inspection = look(model)
    found = {a.name: a for a in inspection.attentions}[f"{side}.attention"]
    assert (found.query, found.key, found.layers) == (side, side, (1, 2, 3))
    expected, _ = by_hand(model, side, inspection.sides[side], causal)
    np.testing.assert_allclose(found.maps[0], expected, atol=2e-6)
    for weights_HTS in found.maps:
        np.testing.assert_allclose(weights_HTS.sum(-1), 1, atol=1e-6)
        assert bool(np.all(weights_HTS[:, *np.triu_indices(weights_HTS.shape[1], 1)] == 0)) is causal


def test_cross_attention_is_the_softmax_of_queries_and_the_sources_keys() -> None:
    model = build("encoder_decoder")
    found = {a.name: a for a in look(model).attentions}["decoder.cross_attention"]
    assert [weights.shape for weights in found.maps] == [(2, len(STREAM), len(SOURCE))] * 3
    _, x_TD = by_hand(model, "decoder", STREAM, True)
    block: Any = model.transformer.decoder.blocks[0]  # type: ignore[union-attr]
    memory_SD = array(model.transformer.encode(torch.tensor([SOURCE])).states_BSD[0])
    q = heads_of(
        normed(x_TD, block.cross_norm) @ array(block.cross.query.weight).T + array(block.cross.query.bias)
    )
    k, _ = np.split(
        memory_SD @ array(block.cross.key_value.weight).T + array(block.cross.key_value.bias), 2, axis=1
    )
    expected = softmax(q @ heads_of(k).transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
    np.testing.assert_allclose(found.maps[0], expected, atol=2e-6)


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
def test_a_row_of_the_lens_is_the_model_cut_after_that_layer(kind: str, place: str) -> None:
    model = build(kind, norm_place=place)
    inspection = look(model, Limits(lens=VOCABULARY))
    lens = inspection.streams[-1]
    assert (lens.kind, lens.rows) == ("lens", (0, 1, 2, 3))
    batch = {"ids": torch.tensor([STREAM])}
    if kind == "encoder_decoder":
        batch["source_ids"] = torch.tensor([SOURCE])
    for row in lens.rows:
        cut = copy.deepcopy(model)
        stack: Any = cut.transformer.decoder or cut.transformer.encoder
        stack.blocks = stack.blocks[:row]
        expected = cut.logits(cut(batch).hidden_BTD[0]).softmax(-1).detach()
        found = np.zeros_like(expected)
        np.put_along_axis(found, lens.ids_RTK[row], lens.values_RTK[row], axis=-1)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        truth = STREAM if kind == "encoder" else STREAM[1:]
        right = expected[range(len(truth)), truth]
        np.testing.assert_allclose(lens.truth_RT[row][: len(truth)], right, atol=1e-6)  # type: ignore[index]


def test_the_last_row_of_the_lens_is_the_prediction() -> None:
    inspection = look(build("decoder"), Limits(lens=4, candidates=4), after=2)
    said, lens = inspection.predictions[0], inspection.streams[0]
    np.testing.assert_array_equal(lens.ids_RTK[-1], said.ids_TK)
    np.testing.assert_allclose(lens.values_RTK[-1], said.values_TK, atol=1e-7)
    assert said.truth == (*STREAM[1:], 2)


def test_next_token_probabilities() -> None:
    model = build("decoder")
    said = look(model, Limits(candidates=VOCABULARY)).predictions[0]
    assert said.kind == "next"
    np.testing.assert_allclose(said.values_TK.sum(-1), 1, atol=1e-6)
    assert np.all(np.diff(said.values_TK, axis=-1) <= 0)
    logits_TV = model.logits(model({"ids": torch.tensor([STREAM])}).hidden_BTD[0]).detach()
    for place, truth in enumerate(STREAM[1:]):
        order = logits_TV[place].argsort(descending=True).tolist()
        assert said.truth_rank[place] == order.index(truth) + 1
        assert said.truth_value[place] == pytest.approx(float(logits_TV[place].softmax(-1)[truth]), abs=1e-6)
    assert said.truth[-1] is None
    assert said.truth_rank[-1] == 0


def test_a_masked_place_is_what_the_model_says_of_the_text_with_a_mask_there() -> None:
    model = build("encoder")
    ids = (1, *(5 + i % 14 for i in range(19)), 2)  # more places than are read at a time
    masked, read = look(model, stream=ids).predictions
    assert (masked.kind, read.kind) == ("masked", "read")
    for place in range(1, 20):
        hidden = list(ids)
        hidden[place] = Letters.mask
        logits = model.logits(model({"ids": torch.tensor([hidden])}).hidden_BTD[0, place])
        expected = logits.detach().softmax(-1)
        best = expected.topk(10)
        np.testing.assert_array_equal(masked.ids_TK[place], best.indices)
        np.testing.assert_allclose(masked.values_TK[place], best.values, atol=1e-6)
        assert masked.truth_value[place] == pytest.approx(float(expected[ids[place]]), abs=1e-6)
    assert masked.truth[0] is None
    assert masked.truth[-1] is None
    assert read.truth == ids


def test_without_a_head_the_stream_is_told_by_likeness() -> None:
    model = build("encoder", heads={})
    inspection = look(model)
    assert inspection.predictions == []
    assert any("no head over the vocabulary" in note for note in inspection.notes)
    stream = inspection.streams[0]
    assert stream.kind == "similar"
    captured = model({"ids": torch.tensor([STREAM])}, capture=("residuals",)).captured["encoder.residuals"]
    for row, x_BTD in enumerate(captured):
        x_TD = array(x_BTD[0])
        length = np.linalg.norm(x_TD, axis=-1)
        np.testing.assert_allclose(stream.norms_RT[row], length, rtol=1e-5)
        cosine = x_TD @ x_TD.T / length / length[:, None]
        for place, (others, values) in enumerate(zip(stream.ids_RTK[row], stream.values_RTK[row])):
            assert place not in others
            np.testing.assert_allclose(values, cosine[place, others], atol=1e-5)
            assert values[0] == pytest.approx(np.delete(cosine[place], place).max(), abs=1e-5)


def test_an_encoder_beside_a_decoder_is_not_read_as_words() -> None:
    encoder, decoder = look(build("encoder_decoder")).streams
    assert (encoder.side, encoder.kind, decoder.side, decoder.kind) == (
        "encoder",
        "similar",
        "decoder",
        "lens",
    )
    assert "no output head" in encoder.why


def test_a_text_of_one_token_and_a_tokenizer_without_a_mask() -> None:
    class Maskless(Letters):
        @property
        def mask(self) -> int:  # type: ignore[override]
            raise DataError("no mask token")

    model = build("encoder")
    inspection = inspect(model, Maskless(), Reading((7,)), Limits())
    assert [said.kind for said in inspection.predictions] == ["read"]
    assert any("no mask token" in note for note in inspection.notes)
    alone = look(build("encoder", heads={}), stream=(7,))
    assert alone.streams[0].ids_RTK.shape == (4, 1, 0)


def test_layers_are_those_asked_for_or_as_many_as_fit() -> None:
    model = build("encoder_decoder", layers=2, decoder_layers=6)
    asked = look(model, Limits(layers=(5, 2, 5)))
    assert {a.name: a.layers for a in asked.attentions} == {
        "encoder.attention": (2,), "decoder.attention": (2, 5), "decoder.cross_attention": (2, 5),
    }  # fmt: skip
    assert asked.streams[1].rows == (0, 2, 5, 6)
    full = look(model)
    np.testing.assert_array_equal(asked.attentions[1].maps[1], full.attentions[1].maps[4])
    per_layer = 2 * (len(STREAM) ** 2 + len(SOURCE) ** 2 + len(STREAM) * len(SOURCE))
    few = look(model, Limits(map_bytes=3 * per_layer))
    assert {a.name: a.layers for a in few.attentions} == {
        "encoder.attention": (1, 2), "decoder.attention": (2, 4, 6), "decoder.cross_attention": (2, 4, 6),
    }  # fmt: skip
    assert few.notes == [
        "To keep the page small it shows layers 2, 4, 6 of 6; choose others with --layers, or give a shorter text."
    ]


@pytest.mark.parametrize(
    ("limits", "stream", "says"),
    [
        (Limits(layers=(4,)), STREAM, "--layers: 4: the model has layers 1 to 3"),
        (Limits(layers=(0,)), STREAM, "--layers: 0: the model has layers 1 to 3"),
        (Limits(layers=()), STREAM, "--layers: none"),
        (Limits(tokens=5), STREAM, "6 tokens for the model's decoder and the page takes 5.*--tokens 6"),
        (Limits(map_bytes=10), STREAM, "MB of attention maps .*choose fewer layers"),
        (Limits(map_bytes=50, layers=(1, 2, 3)), STREAM, "MB of attention maps"),
        (Limits(), (5,) * 25, "25 tokens and the model's decoder has 24 positions"),
        (Limits(), (), "the text is empty"),
    ],
)
def test_what_does_not_fit_is_one_line(limits: Limits, stream: tuple[int, ...], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        look(build("decoder"), limits, stream=stream)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_told() -> None:
    model = build("decoder")
    with torch.no_grad():
        model.transformer.tokens.weight[7, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        look(model)


def test_looking_leaves_the_model_as_it_was() -> None:
    model = build("decoder", dropout=0.5).train()
    one, two = look(model), look(model)
    assert model.training
    np.testing.assert_array_equal(one.attentions[0].maps[2], two.attentions[0].maps[2])
