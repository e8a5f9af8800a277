"""Fast mode: every way of sharing the work learns what one process learns, within the rounding of sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import together
from small_runs import Trained, Work, largest_difference, model_of, trained

from nalanda.base.errors import UserError
from nalanda.config import parse
from nalanda.train.parallel_model import check_parallel
from nalanda.train.parallel_sizes import ParallelConfig


def check(work: Work, ranks: int, parallel: dict[str, Any], losses: float, weights: float) -> Trained:
    one = trained(work)
    runs = together(ranks, trained, Work(**{**vars(work), "loop": {**work.loop, "parallel": parallel}}))
    assert not isinstance(runs[0], Exception), runs
    found = largest_difference(one, runs[0])
    assert found[0] <= losses
    assert found[1] <= weights
    return runs[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shard", [False, True])
def test_data_parallel(shard: bool, optimizer: str) -> None:
    check(
        Work({"optimizer": {"kind": optimizer}, "ema": {"decay": 0.9}, "clip": 0.1}, evaluate=True),
        2,
        {"shard": shard},
        1e-6,
        1e-6,
    )


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activations_worked_out_again_change_no_bit(mode: str) -> None:
    work = Work(model={"dropout": 0.1})
    one = trained(work)
    other = trained(Work({"parallel": {"checkpointing": mode}}, model={"dropout": 0.1}))
    assert other.losses == one.losses
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_tensor_parallel() -> None:
    check(Work({"optimizer": {"kind": "muon"}}, evaluate=True), 2, {"tensor": 2}, 1e-6, 1e-6)


def test_context_parallel() -> None:
    check(Work(source={"width": 15}), 2, {"context": 2}, 1e-6, 1e-6)


MOE = {"moe": {"experts": 4, "top_k": 2, "inner": 16, "balance_bias": True}}


def test_expert_parallel() -> None:
    check(Work(model=MOE, experts=True), 2, {"expert": 2}, 1e-6, 1e-6)


ALL = [
    ({"data": 2, "tensor": 2}, {}),
    ({"data": 2, "tensor": 2, "shard": True}, {"qk_norm": True}),
    ({"context": 2, "tensor": 2}, {}),
    ({"data": 2, "context": 2, "shard": True, "checkpointing": "full"}, {}),
    ({"context": 4}, {"window": 5}),
    ({"data": 2, "expert": 2}, MOE),
    ({"data": 2, "expert": 2, "shard": True, "checkpointing": "selective"}, MOE),
    ({"expert": 2, "context": 2}, MOE),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("parallel", "model"), ALL)
def test_all_together(parallel: dict[str, Any], model: dict[str, Any]) -> None:
    check(Work({"optimizer": {"kind": "muon"}}, model=model, evaluate=True), 4, parallel, 1e-6, 1e-6)


BERT = {
    "kind": "encoder", "norm": "layer", "norm_place": "post", "bias": True, "position": "learned",
    "feedforward": "mlp", "activation": "gelu", "kv_heads": None, "token_types": 2, "embedding_norm": True,
}  # fmt: skip
T5 = {
    "kind": "encoder_decoder",
    "position": "relative",
    "bias": True,
    "tie_embeddings": False,
    "kv_heads": None,
}
MODDED = {
    "qk_norm": True, "value_embeddings": "ends", "first_mix": True, "bigrams": 64, "logit_softcap": 15.0,
    "init_zero": ["residual"], "previous_mix": True,
}  # fmt: skip
KINDS = {
    "bert": (BERT, False),
    "t5": (T5, True),
    "modded": (MODDED, False),
    "untied": ({"tie_embeddings": False}, False),
}
WAYS = {
    "tensor": {"tensor": 2},
    "context": {"context": 2},
    "shard": {"shard": True, "checkpointing": "selective"},
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_networks(kind: str, way: str) -> None:
    model, pairs = KINDS[kind]
    if pairs and way == "context":
        pytest.skip("an encoder-decoder has no context parallel")
    source = {"pairs": pairs, "micros": 3}
    check(Work({"optimizer": {"kind": "muon"}}, model=model, source=source), 2, WAYS[way], 1e-6, 2e-6)


@pytest.mark.parametrize("micros", [1, 3])
def test_fewer_batches_than_ranks_share_their_rows(micros: int) -> None:
    check(Work(source={"micros": micros}), 2, {"shard": micros == 3}, 1e-6, 1e-6)


@pytest.mark.exhaustive
def test_cautious_decay_and_even_rows_look_at_whole_matrices() -> None:
    muon = {"kind": "muon", "cautious": True, "neurons": 0.95, "weight_decay": 0.1}
    check(Work({"optimizer": muon}), 2, {"shard": True}, 1e-6, 1e-6)


LINES = [
    (
        {"tensor": 3},
        {},
        "parallel.tensor: 3 does not divide the 4 heads of transformer.decoder.blocks.0.attention",
    ),
    ({"tensor": 4}, {}, "parallel.tensor: 4 does not divide the 2 key/value heads of"),
    ({"expert": 2}, {}, "parallel.expert: this model has no mixture of experts"),
    ({"expert": 3}, MOE, "parallel.expert: 3 does not divide the 4 experts of"),
    ({"context": 2}, {"kind": "encoder_decoder"}, "parallel.context: is for models with one stack"),
    ({"data": 2}, {}, "is 2 processes and this run has 3; start it with torchrun --nproc-per-node 2"),
]


@pytest.mark.parametrize(("sizes", "model", "line"), LINES)
def test_sizes_that_do_not_divide_are_one_line(
    sizes: dict[str, int], model: dict[str, Any], line: str
) -> None:
    world = 3 if "data" in sizes else next(iter(sizes.values()))
    with pytest.raises(UserError) as error:
        check_parallel(parse(ParallelConfig, sizes, "test"), model_of(Work(model=model)), world)
    assert line in str(error.value)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "parallel",
    [{"shard": True}, {"tensor": 2}, {"context": 2}, {"shard": True, "checkpointing": "selective"}],
)
def test_bf16_computes_in_bf16(parallel: dict[str, Any]) -> None:
    """As far from one process in bf16 as bf16 rounds: 2^-8 for a number, less for a mean of many."""
    check(Work({"precision": "bf16"}), 2, parallel, 2e-3, 5e-3)
