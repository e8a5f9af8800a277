"""A mixture of experts is what a loop over places says it is, in the same bits every time."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from nalanda.models.exchange import load_model, save_model
from nalanda.models.plain import ModelConfig, MoEConfig, build_spec
from nalanda.nn.linear import ExpertLinear, _slices
from nalanda.nn.model import Model
from nalanda.nn.moe import MoE
from nalanda.nn.spec import MoESpec, TokensHeadSpec
from nalanda.train.compile import compiler

HIDDEN, INNER = 12, 8
SPECS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "olmoe": {"normalize": False, "top_k": 3},
    "deepseek": {"router": "sigmoid", "scale": 2.5, "balance_bias": True, "shared": 16},
    "qwen2": {"normalize": False, "shared": 8, "shared_gate": True},
    "switch": {"top_k": 1, "normalize": False, "expert": "mlp", "activation": "relu", "bias": True},
}


def make(name: str = "mixtral", dtype: torch.dtype = torch.float64, **more: Any) -> MoE:
    torch.manual_seed(0)
    values = {"experts": 5, "top_k": 2, "inner": INNER, **SPECS[name], **more}
    moe = MoE(MoESpec(**values), HIDDEN)
    for weight in moe.parameters():
        nn.init.normal_(weight, std=0.5)
    if moe.router.balance_bias is not None:
        moe.router.balance_bias.normal_(std=0.3)
    return moe.to(dtype)


def places(rows: int = 3, length: int = 7, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, HIDDEN, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def one_place(moe: MoE, x_D: Tensor) -> Tensor:
    """A place's output, by the definition."""
    spec, router, experts = moe.spec, moe.router, moe.experts
    logits_E = router.weight @ x_D
    squashed_E = logits_E.softmax(0) if spec.router == "softmax" else torch.sigmoid(logits_E)
    scores = squashed_E.detach().tolist()
    bias = [0.0] * spec.experts if router.balance_bias is None else router.balance_bias.tolist()
    chosen = sorted(range(spec.experts), key=lambda e: -(scores[e] + bias[e]))[: spec.top_k]
    weight = {e: torch.exp(logits_E[e]) / torch.exp(logits_E).sum() for e in chosen}
    if spec.router == "sigmoid":
        weight = {e: 1 / (1 + torch.exp(-logits_E[e])) for e in chosen}
    if spec.normalize:
        whole = sum(weight.values())
        weight = {e: w / whole for e, w in weight.items()}
    y_D = torch.zeros_like(x_D)
    for e in chosen:
        if spec.expert == "glu":
            inner = spec.inner
            gate, up = experts.gate_up.weight[e, :inner] @ x_D, experts.gate_up.weight[e, inner:] @ x_D
            said = experts.output.weight[e] @ (F.silu(gate) * up)
        else:
            assert experts.input.bias is not None
            assert experts.output.bias is not None
            inside = F.relu(experts.input.weight[e] @ x_D + experts.input.bias[e])
            said = experts.output.weight[e] @ inside + experts.output.bias[e]
        y_D = y_D + spec.scale * weight[e] * said
    if moe.shared is not None:
        gate = 1.0 if moe.shared_gate is None else torch.sigmoid(moe.shared_gate.weight[0] @ x_D)
        y_D = y_D + gate * moe.shared(x_D)
    return y_D


@pytest.mark.parametrize("name", SPECS)
def test_equals_a_loop_over_places_with_gradients(name: str) -> None:
    moe, x = make(name), places().requires_grad_()
    slope = places(seed=2)
    weights = {"x": x, **dict(moe.named_parameters())}
    y = moe(x)
    expected = torch.stack([torch.stack([one_place(moe, x_D) for x_D in row]) for row in x])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad((y * slope).sum(), list(weights.values()))
    wanted = torch.autograd.grad((expected * slope).sum(), list(weights.values()))
    for weight, one, two in zip(weights, found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12, msg=f"gradient of {weight}")
        if name != "switch" or weight != "router.weight":
            assert two.abs().max() > 1e-3, weight


def test_numeric_gradients() -> None:
    moe, x = make("deepseek"), places(1, 3).requires_grad_()
    router = moe.router.weight.detach().clone().requires_grad_()

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(moe, {"router.weight": weight}, (x,))

    assert torch.autograd.gradcheck(f, (x, router))


def config_of(theirs: str, **values: Any) -> Any:
    module = importlib.import_module(f"transformers.models.{theirs}.configuration_{theirs}")
    name = {"mixtral": "Mixtral", "olmoe": "Olmoe", "qwen3_moe": "Qwen3Moe", "qwen2_moe": "Qwen2Moe"}
    kind = getattr(module, name.get(theirs, "DeepseekV3") + "Config")
    return kind(hidden_size=HIDDEN, num_experts_per_tok=2, **values)


def sparse_block(theirs: str, name: str, config: Any) -> nn.Module:
    module = importlib.import_module(f"transformers.models.{theirs}.modeling_{theirs}")
    torch.manual_seed(0)
    block: nn.Module = getattr(module, name)(config)
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.5)
    return block.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("theirs", "name", "values", "ours"),
    [
        ("mixtral", "MixtralSparseMoeBlock", {"num_local_experts": 5, "intermediate_size": INNER}, {}),
        (
            "olmoe",
            "OlmoeSparseMoeBlock",
            {"num_experts": 5, "intermediate_size": INNER},
            {"normalize": False},
        ),
        (
            "qwen3_moe",
            "Qwen3MoeSparseMoeBlock",
            {"num_experts": 5, "moe_intermediate_size": INNER, "norm_topk_prob": True},
            {},
        ),
        (
            "qwen2_moe",
            "Qwen2MoeSparseMoeBlock",
            {"num_experts": 5, "moe_intermediate_size": INNER, "shared_expert_intermediate_size": 10},
            {"normalize": False, "shared": 10, "shared_gate": True},
        ),
        (
            "deepseek_v3",
            "DeepseekV3MoE",
            {
                "n_routed_experts": 5,
                "moe_intermediate_size": INNER,
                "n_shared_experts": 2,
                "n_group": 1,
                "topk_group": 1,
            },
            {
                "router": "sigmoid",
                "scale": 2.5,
                "balance_bias": True,
                "shared": 2 * INNER,
            },
        ),
    ],
)
def test_equals_transformers(theirs: str, name: str, values: dict[str, Any], ours: dict[str, Any]) -> None:
    pytest.importorskip("transformers", reason="the oracle")
    block = sparse_block(theirs, name, config_of(theirs, **values))
    moe = make("mixtral", torch.float32, **ours)
    found = dict(block.state_dict())
    weights = {
        "router.weight": found.pop("gate.weight"),
        "experts.gate_up.weight": found.pop("experts.gate_up_proj"),
        "experts.output.weight": found.pop("experts.down_proj"),
    }
    if "gate.e_score_correction_bias" in found:
        weights["router.balance_bias"] = found.pop("gate.e_score_correction_bias").normal_(std=0.3)
    for shared in ("shared_expert", "shared_experts"):
        if f"{shared}.gate_proj.weight" in found:
            parts = [found.pop(f"{shared}.{part}_proj.weight") for part in ("gate", "up", "down")]
            weights |= {"shared.gate_up.weight": torch.cat(parts[:2]), "shared.output.weight": parts[2]}
    if "shared_expert_gate.weight" in found:
        weights["shared_gate.weight"] = found.pop("shared_expert_gate.weight")
    assert not found
    moe.load_state_dict(weights)
    x = places(dtype=torch.float32)
    with torch.no_grad():
        expected = block(x)
        assert expected.abs().max() > 0.5
        torch.testing.assert_close(moe(x), expected, rtol=1e-5, atol=1e-5)


def test_the_same_input_gives_the_same_bits() -> None:
    moe, x = make("qwen2", torch.float32), places(8, 40, torch.float32)

    def bits() -> list[Tensor]:
        y = moe(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), list(moe.parameters()))]

    for one, two in zip(bits(), bits(), strict=True):
        assert torch.equal(one, two)
    with torch.no_grad():
        assert torch.equal(moe(x.flip(0)).flip(0), moe(x.flip(0)).flip(0))


@pytest.mark.parametrize("bias", [False, True])
def test_one_call_for_all_groups_equals_a_product_for_each(bias: bool) -> None:
    layer = ExpertLinear(4, 8, 12, bias)
    for weight in layer.parameters():
        nn.init.normal_(weight)
    counts = torch.tensor([3, 0, 5, 1])  # an expert that nobody chose has a gradient too: zeros
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    both = [layer(x, counts), _slices(x, layer.weight, layer.bias, counts)]
    torch.testing.assert_close(*both)
    assert torch.equal(both[0][3:8], F.linear(x[3:8], layer.weight[2], None if not bias else layer.bias[2]))
    gradients = [torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in both]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)
    assert not gradients[0][1][1].any()


def test_runs_in_bf16_under_autocast_with_an_fp32_router() -> None:
    moe, x = make("olmoe", torch.float32), places(dtype=torch.float32)
    exact, logits, rounded = moe(x), [], []
    moe(x, routers=logits)
    with torch.autocast("cpu", torch.bfloat16):
        y = moe(x, routers=rounded)
    assert y.dtype == torch.float32
    assert torch.equal(logits[0], rounded[0])
    assert 0 < (y - exact).abs().max() < 0.05 * exact.abs().max()
    moe.bfloat16()
    assert moe(x.bfloat16()).dtype == torch.bfloat16


def a_model(kind: str = "decoder", **moe: Any) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(
        kind=kind,
        layers=4,
        hidden=16,
        heads=2,
        feedforward="glu",
        activation="silu",
        init_std=0.2,
        moe=MoEConfig(**{"experts": 4, "every": 2, **moe}),
    )
    return Model(build_spec(config, 30), {"tokens": TokensHeadSpec()}).eval()


@torch.no_grad()
def test_batch_equals_solo_and_the_router_is_captured() -> None:
    model = a_model("encoder_decoder")
    draw = torch.Generator().manual_seed(0)
    ids, source = (torch.randint(30, (3, 8), generator=draw) for _ in range(2))
    segments, source_segments = torch.ones(3, 8).long(), torch.ones(3, 8).long()
    segments[1, 5:] = 0
    source_segments[2, 3:] = 0
    batch = {"ids": ids, "segments": segments, "source_ids": source, "source_segments": source_segments}
    output = model(batch, capture=("router", "experts"))
    assert [x.shape for x in output.captured["encoder.router"]] == [(3, 8, 4)] * 2
    assert [x.shape for x in output.captured["decoder.experts"]] == [(3, 8, 2)] * 2
    logits, chosen = output.captured["decoder.router"][1], output.captured["decoder.experts"][1]
    assert torch.equal(logits.topk(2).indices, chosen)
    for row, (length, source_length) in enumerate([(8, 8), (5, 8), (8, 3)]):
        alone = model(
            {"ids": ids[row : row + 1, :length], "source_ids": source[row : row + 1, :source_length]},
            capture=("router",),
        )
        torch.testing.assert_close(alone.hidden_BTD[0], output.hidden_BTD[row, :length], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            alone.captured["decoder.router"][1][0], logits[row, :length], rtol=1e-5, atol=1e-5
        )


def test_only_what_a_token_goes_through_is_counted_as_active() -> None:
    sparse = a_model(shared=8, shared_gate=True, inner=24)
    one = a_model(shared=8, shared_gate=True, inner=24, experts=2)
    per_expert = 3 * 16 * 24
    assert sparse.parameter_count() - sparse.parameter_count(active=True) == 2 * 2 * per_expert
    assert one.parameter_count() == one.parameter_count(active=True)
    rows = 2 * 2 * 16  # two layers, two more experts, a row of the router each
    assert sparse.parameter_count(active=True) - one.parameter_count() == rows
    assert sparse.flops_per_token(10) - one.flops_per_token(10) == pytest.approx(6 * rows)
    dense = a_model(inner=24, experts=2, every=4, top_k=1)
    more = a_model(inner=24, experts=2, every=4, top_k=2)
    assert more.flops_per_token(10) - dense.flops_per_token(10) == pytest.approx(6 * per_expert)


def test_every_weight_starts_as_a_dense_network_s() -> None:
    torch.manual_seed(0)
    config = ModelConfig(kind="decoder", layers=2, hidden=64, init_std=0.02, moe=MoEConfig(balance_bias=True))
    model = Model(build_spec(config, 30), {})
    found = {
        name: float(value.detach().std())
        for name, value in model.named_parameters()
        if "blocks.1.feed" in name
    }
    for name, std in (("router", 0.02), ("experts.input", 0.02), ("experts.output", 0.01)):
        here = found[f"transformer.decoder.blocks.1.feedforward.{name}.weight"]
        assert here == pytest.approx(std, rel=0.1), name
    assert not model.state_dict()["transformer.decoder.blocks.0.feedforward.router.balance_bias"].any()


def test_a_model_with_experts_is_saved_with_its_balance(tmp_path: Path) -> None:
    model = a_model(balance_bias=True)
    for module in model.modules():
        if isinstance(module, MoE):
            module.router.balance_bias.normal_()  # type: ignore[union-attr]
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.spec == model.spec
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 9}, r"top_k \(9\) must not be more than experts \(8\)"),
        ({"shared_gate": True}, "shared_gate needs a shared expert"),
    ],
)
def test_what_does_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MoESpec(experts=8, inner=4, **values)
    with pytest.raises(ValidationError, match="no layer is a mixture"):
        ModelConfig(layers=2, moe=MoEConfig(every=3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
def test_compiles_to_the_same() -> None:
    if compiler() is None:
        pytest.skip("needs a C++ compiler")
    moe = make("qwen2", torch.float32)
    fast = torch.compile(moe, dynamic=True)
    for rows in (3, 5):
        x = places(rows, dtype=torch.float32)
        torch.testing.assert_close(fast(x), moe(x), rtol=1e-5, atol=1e-5)
