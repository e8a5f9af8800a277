"""Which weights are decayed, AdamW against torch's, Muon's orthogonal updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nalanda.base.errors import RunError
from nalanda.train.muon import Muon, minimax, orthogonalize, update_scale
from nalanda.train.optimizer import AdamWConfig, MuonConfig, Optimizer, fused_rows, roles


def test_roles_and_decay_groups(toy: Any) -> None:
    model = toy()
    found = roles(model)
    assert found["embedding.weight"] == "embedding"  # and so is the head that is tied to it
    assert found["up.weight"] == found["down.weight"] == "matrix"
    assert found["heads.next_sentence.weight"] == "head"
    assert {found[name] for name in ("up.bias", "norm.weight", "norm.bias")} == {"vector"}
    names = {id(p): n for n, p in model.named_parameters()}
    groups = Optimizer(AdamWConfig(weight_decay=0.3), model).parts[0].param_groups
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {"up.weight", "down.weight", "heads.next_sentence.weight"}
    groups = Optimizer(AdamWConfig(weight_decay=0.3, decay_embeddings=True), model).parts[0].param_groups
    assert "embedding.weight" in {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}


def test_a_frozen_model_is_an_error(toy: Any) -> None:
    with pytest.raises(RunError, match="no trainable weight"):
        Optimizer(AdamWConfig(), toy().requires_grad_(False))


def _descend(optimizer: Any, model: nn.Linear, steps: int) -> list[float]:
    torch.manual_seed(5)
    x, y = torch.randn(32, 6), torch.randn(32, 4)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_adamw_steps_as_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 4), nn.Linear(6, 4)
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer(AdamWConfig(lr=0.02, betas=(0.9, 0.95), eps=1e-7, weight_decay=0.1), ours)
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-7,
    )
    half = type("Half", (), {"zero_grad": optimizer.zero_grad, "step": lambda self: optimizer.step(0.5)})()
    assert _descend(half, ours, 20) == pytest.approx(_descend(reference, theirs, 20), rel=1e-5)
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_state_goes_round_and_names_what_does_not_fit(toy: Any, toy_batch: Any) -> None:
    for config in (AdamWConfig(), MuonConfig()):
        model = toy()
        optimizer = Optimizer(config, model)
        (model(toy_batch(2, 3, 0)).hidden_BTD.square().sum() + model.heads["tokens"].weight.sum()).backward()
        optimizer.step(1.0)
        state = {name: value.clone() for name, value in optimizer.state().items()}
        other = Optimizer(config, toy())
        other.load(state)
        assert {k: v.tolist() for k, v in other.state().items()} == {k: v.tolist() for k, v in state.items()}
        with pytest.raises(RunError, match="names the weight 'gone'"):
            other.load({"gone/exp_avg": torch.zeros(2)})
        with pytest.raises(RunError, match=r"'up\.weight' is"):
            other.load({"up.weight/exp_avg": torch.zeros(2)})


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_orthogonalize_makes_singular_values_about_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalize(matrices)
    values = torch.linalg.svdvals(result)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.25
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity((u @ vh).flatten(1), result.flatten(1))
    assert float(cosine.min()) > 0.97  # the same directions as the exact polar factor


def test_update_scale() -> None:
    assert update_scale(16, 64, "match_rms") == pytest.approx(1.6)
    assert update_scale(64, 16, "spectral") == 2.0
    assert update_scale(16, 64, "spectral") == 1.0


def test_muon_step_by_hand() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6))
    before, gradient = weight.detach().clone(), torch.randn(4, 6)
    weight.grad = gradient.clone()
    Muon([("w", weight, ())], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    momentum = 0.1 * gradient  # lerp from 0
    look_ahead = 0.1 * gradient + 0.9 * momentum
    update = orthogonalize(look_ahead.unsqueeze(0))[0] * 0.2 * 6**0.5
    torch.testing.assert_close(weight.detach(), before * (1 - 0.05) - 0.1 * update)


def _stepped(options: dict[str, Any], shape: tuple[int, int] = (6, 4), steps: int = 2) -> list[torch.Tensor]:
    """The weight before and after some steps on drawn gradients, and the last orthogonal update."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    optimizer = Muon([("w", weight, ())], lr=0.1, momentum=0.0, **options)
    trail = [weight.detach().clone()]
    for _ in range(steps):
        weight.grad = torch.randn(shape)
        optimizer.step()
        trail.append(weight.detach().clone())
    return [*trail, orthogonalize(weight.grad.unsqueeze(0))[0]]  # type: ignore[union-attr]


def test_rows_are_made_even_by_their_running_size() -> None:
    *trail, last = _stepped({"neurons": 0.5})
    first = orthogonalize(_gradients((6, 4), 2)[0].unsqueeze(0))[0]
    squares = 0.5 * (0.5 * first.square().mean(1)) + 0.5 * last.square().mean(1)
    even = last / squares.sqrt()[:, None]
    even *= last.norm() / even.norm()
    torch.testing.assert_close(trail[-1], trail[-2] - 0.1 * 0.2 * 6**0.5 * even, atol=1e-5, rtol=1e-4)


def _gradients(shape: tuple[int, int], count: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    torch.randn(shape)
    return [torch.randn(shape) for _ in range(count)]


def test_cautious_decay_takes_only_what_shrinks_anyway() -> None:
    before, after, update = _stepped({"cautious": True, "weight_decay": 0.5}, steps=1)
    decayed = before * (1 - 0.05 * (update * before > 0))
    torch.testing.assert_close(after, decayed - 0.1 * 0.2 * 6**0.5 * update)
    assert not torch.equal(after, _stepped({"weight_decay": 0.5}, steps=1)[1])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8])
def test_the_best_quintics_keep_their_word(steps: int) -> None:
    low = 0.05
    x = torch.linspace(low, 1, 4001, dtype=torch.float64)
    for a, b, c in minimax(steps, low):
        x = a * x + b * x**3 + c * x**5
    error = (x - 1).abs().max()
    assert error < [0.75, 0.25, 0.01, 1e-4, 1e-4, 1e-4][min(steps, 6) - 1]
    if steps < 3:  # the error is the same at both ends and both bends: no quintic has a smaller one
        assert float(1 - x.min()) == pytest.approx(float(x.max() - 1), rel=1e-3)


def test_minimax_with_four_steps_is_nearer_than_jordan_with_five() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 24, 64)
    exact = torch.linalg.svd(matrices, full_matrices=False)
    exact = exact.U @ exact.Vh
    jordan = (orthogonalize(matrices, 5) - exact).norm()
    assert (orthogonalize(matrices, 4, polynomial="minimax") - exact).norm() < jordan


def test_products_in_bf16_point_the_same_way() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 32, 64)
    exact, rough = orthogonalize(matrices), orthogonalize(matrices, products="bf16")
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(1), rough.flatten(1))
    assert float(cosine.min()) > 0.999
    assert rough.dtype == torch.float32


def _rates(config: Any, model: nn.Module) -> dict[str, float]:
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [group for part in Optimizer(config, model).parts for group in part.param_groups]
    return {names[id(p)]: float(group["lr"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("kind", [AdamWConfig, MuonConfig])
def test_rates_by_role_and_width(toy: Any, kind: Any) -> None:
    model = toy()
    found = _rates(kind(lr=0.5, rates={"embedding": 0.1, "matrix": 2.0}), model)
    assert found["embedding.weight"] == pytest.approx(0.05)
    assert found["up.weight"] == found["down.weight"] == 1.0
    assert found["up.bias"] == found["heads.next_sentence.weight"] == 0.5
    with pytest.raises(RunError, match="does not say how wide"):
        Optimizer(kind(base_width=4), model)
    model.spec = type("Spec", (), {"hidden": 16})
    wide = _rates(kind(lr=0.5, base_width=4), model)
    assert wide["up.weight"] == wide["heads.next_sentence.weight"] == 0.125
    assert wide["embedding.weight"] == wide["up.bias"] == 0.5
    assert _rates(MuonConfig(lr=0.5, base_width=4, scale="spectral"), model)["up.weight"] == 0.5


def test_a_state_of_rows_goes_round(toy: Any, toy_batch: Any) -> None:
    config = MuonConfig(neurons=0.95)
    model, other = toy(), Optimizer(config, toy())
    optimizer = Optimizer(config, model)
    model(toy_batch(2, 3, 0)).hidden_BTD.square().sum().backward()
    optimizer.step(1.0)
    state = optimizer.state()
    assert state["up.weight/squares"].shape == (model.up.weight.shape[0], 1)
    other.load(state)
    assert torch.equal(other.state()["up.weight/squares"], state["up.weight/squares"])


def test_muon_splits_fused_weights_and_stacks_of_experts() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(12, 4), torch.randn(12, 4)
    fused = nn.Parameter(start.clone())
    parts = [nn.Parameter(part.clone()) for part in start.split([8, 2, 2])]
    experts = nn.Parameter(start.clone().view(3, 4, 4))
    single = [nn.Parameter(part.clone()) for part in start.split(4)]
    fused.grad, experts.grad = gradient.clone(), gradient.clone().view(3, 4, 4)
    for weights, sizes in ((parts, [8, 2, 2]), (single, [4, 4, 4])):
        for weight, part in zip(weights, gradient.split(sizes), strict=True):
            weight.grad = part.clone()
    Muon([("qkv", fused, (8, 2, 2)), ("experts", experts, ())], lr=0.1).step()
    Muon([(str(i), w, ()) for i, w in enumerate([*parts, *single])], lr=0.1).step()
    torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in parts]))
    torch.testing.assert_close(experts.detach(), torch.stack([p.detach() for p in single]))
    with pytest.raises(ValueError, match="qkv"):
        Muon([("qkv", fused, (8, 2))], lr=0.1)


def test_fused_rows_are_read_from_modules() -> None:
    class Attention(nn.Module):
        fused_rows = {"weight": (4, 2, 2)}  # noqa: RUF012

    model = nn.Sequential(nn.Linear(2, 2), Attention())
    assert fused_rows(model) == {"1.weight": (4, 2, 2)}


def test_muon_learns_and_leaves_embeddings_and_vectors_to_adam(toy: Any, folder: Any) -> None:
    from nalanda.train.config import LoopConfig

    model = toy()
    optimizer = Optimizer(MuonConfig(), model)
    muon, adam = optimizer.parts
    assert sum(p.numel() for g in muon.param_groups for p in g["params"]) == 2 * 8 * 16
    assert {id(model.up.bias), id(model.embedding.weight)} <= {
        id(p) for g in adam.param_groups for p in g["params"]
    }
    run = folder()
    run.fit(LoopConfig(budget={"steps": 120}, optimizer=MuonConfig(lr=0.02), log_every=20))  # type: ignore[arg-type]
    losses = list(run.losses().values())
    assert losses[-1] < losses[0] / 5
