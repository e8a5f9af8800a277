"""Options of our own networks: value embeddings, bigrams, the mix with the stack's beginning, what starts at 0."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from nalanda.models.exchange import load_model, save_model
from nalanda.models.plain import ModelConfig, build_spec, token_head
from nalanda.nn.cache import Cache
from nalanda.nn.model import Model
from nalanda.nn.spec import AttentionSpec, BlockSpec, FeedForwardSpec, Spec
from nalanda.nn.stack import Tokens, pairs

ALL: dict[str, Any] = {
    "value_embeddings": "ends",
    "bigrams": 61,
    "bigram_width": 8,
    "first_mix": True,
    "previous_mix": True,
    "logit_softcap": 5.0,
}


def make(kind: str = "decoder", **more: Any) -> Model:
    """A small model whose options all have a say: what starts at 0 is drawn."""
    torch.manual_seed(0)
    config = ModelConfig(
        **{"kind": kind, "hidden": 32, "layers": 4, "heads": 4, "kv_heads": 2, "init_std": 0.2, **ALL, **more}
    )
    model = Model(build_spec(config, 50), {"tokens": token_head(config)}).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bigrams" in name or "mix" in name:
                weight.normal_()
    return model


def tokens(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(50, (rows, width), generator=torch.Generator().manual_seed(seed))


def test_off_they_leave_no_trace() -> None:
    spec = build_spec(ModelConfig(kind="decoder"), 50)
    text = str(spec.to_dict())
    assert not [word for word in ("value_table", "_mix", "bigrams", "init_zero") if word in text]
    assert not [name for name in ("value_embeddings", "bigrams") if name in ModelConfig().to_dict()]


def test_a_spec_with_all_of_them_goes_round() -> None:
    spec = build_spec(ModelConfig(**{"kind": "decoder", "layers": 4, **ALL}), 50)
    assert Spec.model_validate(spec.to_dict()) == spec
    assert [block.attention.value_table for block in spec.decoder] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("pattern", "layers", "tables"),
    [
        ("none", 2, [None, None]),
        ("alternate", 5, [0, None, 1, None, 2]),
        ("alternate", 4, [None, 0, None, 1]),
        ("ends", 7, [0, 1, 2, None, 0, 1, 2]),
        ("ends", 2, [0, 0]),
        ("all", 3, [0, 1, 2]),
    ],
)
def test_which_layers_have_a_value_table(pattern: Any, layers: int, tables: list[int | None]) -> None:
    spec = build_spec(ModelConfig(kind="decoder", layers=layers, value_embeddings=pattern), 50)
    assert [block.attention.value_table for block in spec.decoder] == tables


def test_what_does_not_fit() -> None:
    block = BlockSpec(attention=AttentionSpec(heads=4), feedforward=FeedForwardSpec(inner=8))
    with pytest.raises(ValidationError, match="untie it"):
        Spec(vocabulary=9, hidden=16, decoder=(block,), init_zero=("head",))
    crossed = block.model_copy(update={"cross": AttentionSpec(heads=4, value_table=0)})
    with pytest.raises(ValidationError, match=r"decoder\[0\].cross: values come from the source"):
        Spec(vocabulary=9, hidden=16, encoder=(block,), decoder=(crossed,))
    with pytest.raises(ValidationError, match="say how many rows"):
        Spec(vocabulary=9, hidden=16, decoder=(block,), bigram_width=4)
    with pytest.raises(ValidationError, match="at least 2 layers"):
        ModelConfig(kind="decoder", layers=1, value_embeddings="ends")


@torch.no_grad()
def test_values_are_mixed_as_written() -> None:
    model = make(layers=2, value_embeddings="all", bigrams=None, bigram_width=None, first_mix=False)
    attention = model.transformer.decoder.blocks[0].attention  # type: ignore[union-attr,index]
    x_BTD, ids_BT = torch.randn(1, 1, 32), torch.tensor([[7]])
    table = model.transformer.decoder.value_tables["0"].weight  # type: ignore[union-attr,index]
    from nalanda.nn.mask import AttentionMask

    found = attention(x_BTD, AttentionMask(), None, None, None, table[ids_BT])
    own = attention.qkv(x_BTD)[..., -16:]  # one place sees itself alone: its value is what comes out
    mixed = attention.value_mix[0] * own + attention.value_mix[1] * table[7]
    wide = mixed.unflatten(-1, (2, 8)).repeat_interleave(2, dim=2).flatten(2)  # two query heads a group
    torch.testing.assert_close(found, attention.output(wide))


@torch.no_grad()
def test_a_layer_reads_a_mix_with_the_beginning() -> None:
    model = make(value_embeddings="none", bigrams=None, bigram_width=None, previous_mix=False)
    batch = {"ids": tokens(2, 5)}
    a, b = torch.tensor([[2.0, 3.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).unbind(1)
    for index, block in enumerate(model.transformer.decoder.blocks):  # type: ignore[union-attr,arg-type]
        block.first_mix.copy_(torch.stack([a[index], b[index]]))  # type: ignore[operator,union-attr]
    # The last layer reads the beginning alone, so it is as if it were the only one.
    only = make(value_embeddings="none", bigrams=None, bigram_width=None, previous_mix=False, layers=1)
    whole, one = model.transformer.decoder, only.transformer.decoder
    only.transformer.tokens.load_state_dict(model.transformer.tokens.state_dict())
    one.blocks[0].load_state_dict(whole.blocks[3].state_dict())  # type: ignore[union-attr,index]
    one.blocks[0].first_mix.copy_(torch.tensor([1.0, 0.0]))  # type: ignore[union-attr,index,operator]
    one.norm.load_state_dict(whole.norm.state_dict())  # type: ignore[union-attr]
    torch.testing.assert_close(model(batch).hidden_BTD, only(batch).hidden_BTD)
    captured = model(batch, capture=("residuals",)).captured["decoder.residuals"]
    assert not torch.equal(captured[0], captured[1])


@torch.no_grad()
def test_embeddings_take_in_those_before() -> None:
    model = make(value_embeddings="none", bigrams=None, bigram_width=None, first_mix=False)
    ids_BT, share_D = tokens(1, 4), model.transformer.decoder.previous_mix  # type: ignore[union-attr]
    captured = model(
        {"ids": ids_BT, "segments": torch.tensor([[1, 1, 2, 2]])}, capture=("residuals",)
    ).captured
    vectors = model.transformer.tokens(ids_BT)[0]
    expected = vectors.clone()
    expected[1] += share_D * vectors[0]
    expected[3] += share_D * vectors[2]  # place 2 begins a document
    torch.testing.assert_close(captured["decoder.residuals"][0][0], expected)


def test_pairs_of_tokens_have_rows() -> None:
    given = Tokens(torch.tensor([[4, 5, 4, 5]]), torch.tensor([[-1, 4, 5, 4]]))
    found = pairs(given, 61)[0].tolist()
    assert found[1] == found[3] == (4 * 1_000_003 + 5) % 61
    assert len(set(found)) == 3
    assert all(0 <= row < 61 for row in found)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
def test_packed_equals_separate(kind: str) -> None:
    model = make(kind)
    batch = {"ids": tokens(1, 9), "segments": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0]])}
    if kind == "encoder_decoder":
        batch |= {"source_ids": tokens(1, 8, 1), "source_segments": torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]])}
    whole = model(batch).hidden_BTD
    for own, source in ((slice(0, 4), slice(0, 3)), (slice(4, 7), slice(3, 7))):
        alone = {"ids": batch["ids"][:, own]}
        if kind == "encoder_decoder":
            alone["source_ids"] = batch["source_ids"][:, source]
        torch.testing.assert_close(whole[:, own], model(alone).hidden_BTD, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_equals_uncached_with_prompts_padded_on_either_side(side: str) -> None:
    model, ids, lengths = make(), tokens(3, 9), [3, 5, 1]
    segments, prompt = torch.zeros(3, 5, dtype=torch.int32), torch.zeros(3, 5, dtype=torch.int64)
    for row, length in enumerate(lengths):
        part = slice(5 - length, 5) if side == "left" else slice(0, length)
        segments[row, part], prompt[row, part] = 1, ids[row, :length]
    cache = Cache(capacity=12)
    model({"ids": prompt, "segments": segments}, cache=cache)
    cache.select(torch.tensor([2, 0, 1]))
    rows = [2, 0, 1]
    for step in range(2):
        column = torch.stack([ids[row, lengths[row] + step] for row in rows])[:, None]
        found = model({"ids": column}, cache=cache).hidden_BTD[:, 0]
        for place, row in enumerate(rows):
            alone = model({"ids": ids[row : row + 1, : lengths[row] + step + 1]}).hidden_BTD[0, -1]
            torch.testing.assert_close(found[place], alone, atol=1e-5, rtol=1e-5)


def test_gradients_against_finite_differences() -> None:
    model = make(layers=2, bigrams=13).double()
    batch = {"ids": tokens(2, 5), "segments": torch.tensor([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]])}

    def loss() -> Tensor:
        return model.logits(model(batch).hidden_BTD).log_softmax(-1)[..., 3].sum()

    loss().backward()
    wanted = ("value_mix", "value_tables", "first_mix", "bigrams", "bigram_output", "previous_mix")
    checked = set()
    for name, weight in model.named_parameters():
        word = next((w for w in wanted if w in name), None)
        if word is None:
            continue
        assert weight.grad is not None, name
        place = int(weight.grad.abs().flatten().argmax())
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                weight.view(-1)[place] += step
                values.append(float(loss()))
        with torch.no_grad():
            weight.view(-1)[place] += 1e-6
        slope = (values[0] - values[1]) / 2e-6
        assert slope == pytest.approx(float(weight.grad.view(-1)[place]), rel=1e-6), name
        checked.add(word)
    assert checked == set(wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_one_graph_for_all_shapes() -> None:
    torch.compiler.reset()
    model = make().train()
    compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
    for rows, width in ((3, 9), (2, 5)):
        batch = {"ids": tokens(rows, width), "segments": torch.ones(rows, width, dtype=torch.int32)}
        batch["segments"][0, 3:] = 2
        with torch._dynamo.config.patch(error_on_recompile=rows == 2):
            found = compiled(batch).hidden_BTD
        torch.testing.assert_close(found, model(batch).hidden_BTD)
    torch.compiler.reset()


def test_vectors_instead_of_ids_are_refused() -> None:
    model = make()
    with pytest.raises(ValueError, match="give ids, not vectors"):
        model.transformer(None, inputs_embeds_BTD=torch.randn(1, 3, 32))


def test_what_starts_at_zero() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        kind="decoder", hidden=32, layers=2, tie_embeddings=False, init="mup", init_zero=("residual", "head")
    )
    model = Model(build_spec(config, 50), {"tokens": token_head(config)}).eval()
    zero = {name for name, weight in model.named_parameters() if not weight.any()}
    assert zero == {
        "heads.tokens.output.weight",
        *(f"transformer.decoder.blocks.{i}.attention.output.weight" for i in (0, 1)),
        *(f"transformer.decoder.blocks.{i}.feedforward.output.weight" for i in (0, 1)),
    }
    batch = {"ids": tokens(2, 5)}
    assert not model.logits(model(batch).hidden_BTD).any()
    stream = model(batch, capture=("residuals",)).captured["decoder.residuals"]
    assert torch.equal(stream[0], stream[-1])  # every block is the identity


def test_mup_draws_the_head_by_the_width() -> None:
    torch.manual_seed(0)
    spec = build_spec(ModelConfig(kind="decoder", hidden=64, init="mup", tie_embeddings=False), 500)
    model = Model(spec, {"tokens": token_head(ModelConfig())})
    for weight, expected in (
        (model.heads["tokens"].output.weight, 1 / 64),  # type: ignore[union-attr]
        (model.transformer.tokens.weight, 0.02),
        (model.transformer.decoder.blocks[0].attention.qkv.weight, 1 / 8),  # type: ignore[union-attr,index]
    ):
        assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(weight.numel()))


def test_saved_in_our_own_layout_and_read_again(tmp_path: Path) -> None:
    model = make()
    save_model(model, tmp_path / "model")
    text = (tmp_path / "model" / "config.json").read_text(encoding="utf-8")
    assert '"model_type": "nalanda"' in text
    again = load_model(tmp_path / "model")
    assert again.spec == model.spec
    assert again.head_specs == model.head_specs
    batch = {"ids": tokens(2, 6)}
    with torch.no_grad():
        assert torch.equal(again.logits(again(batch).hidden_BTD), model.logits(model(batch).hidden_BTD))


def test_a_family_keeps_what_started_at_zero(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        kind="decoder",
        layers=1,
        norm="rms",
        norm_eps=1e-6,
        feedforward="glu",
        activation="silu",
        init_zero=("residual",),
    )
    model = Model(build_spec(config, 50), {"tokens": token_head(config)})
    save_model(model, tmp_path / "model")
    assert '"model_type": "llama"' in (tmp_path / "model" / "config.json").read_text(encoding="utf-8")
    assert load_model(tmp_path / "model").spec.init_zero == ("residual",)
