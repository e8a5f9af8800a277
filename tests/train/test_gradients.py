"""Gradients: every one written by hand against finite differences in float64, and a step's in any split of its rows.

`python tests/train/test_gradients.py` prints the errors as a table (kept in benchmarks/results).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exchanges import exchange_errors
from processes import together
from torch import Tensor

from nalanda.data.batch import Batch
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.attend import attend
from nalanda.nn.dropout import dropout_cpu
from nalanda.nn.mask import AttentionMask
from nalanda.nn.model import Model
from nalanda.nn.moe import _Combine, _Dispatch
from nalanda.nn.norm import rms_norm_cpu
from nalanda.nn.rotary import Rotary, RotarySpec, rotate
from nalanda.nn.spec import TokensHeadSpec
from nalanda.objectives.cross_entropy import linear_cross_entropy
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.step import accumulate

ROOT = Path(__file__).resolve().parents[2]
Case = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def draw(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_()


def cross_entropy(softcap: float | None, chunk: int) -> Case:
    targets, weight = torch.tensor([3, 0, 6, 6, 2, 1, 5]), torch.tensor([1, 0.5, 0, 2, 1, 1, 3]).double()

    def loss(hidden: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden, matrix, bias, targets, weight,
            label_smoothing=0.2, z_loss=0.05, softcap=softcap, chunk=chunk,
        )[0]  # fmt: skip

    return loss, (draw(7, 5), draw(8, 5, seed=1), draw(8, seed=2))


def routes() -> tuple[Tensor, Tensor]:
    chosen_NK = torch.tensor([[0, 2], [1, 2], [2, 0], [1, 0], [0, 1]])
    order_R = chosen_NK.reshape(-1).argsort(stable=True)
    return order_R, order_R.argsort().view_as(chosen_NK)


def dispatch() -> Case:
    order_R, row_NK = routes()
    return lambda x: _Dispatch.apply(x, order_R, row_NK).sin(), (draw(5, 3),)


def combine() -> Case:
    order_R, row_NK = routes()
    return lambda y, w: _Combine.apply(y, w, order_R, row_NK).sin(), (draw(10, 3), draw(5, 2, seed=1))


def dropped() -> Case:
    def f(x: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same places each time
        return dropout_cpu(x.sin(), 0.4)

    return f, (draw(6, 7),)


def rotated() -> Case:
    rotary = Rotary(RotarySpec(theta=100.0), 6)
    tables = rotary(torch.tensor([[0, 1, 5], [0, 0, 9]]), torch.float64)
    return lambda x: rotate(x, tables), (draw(2, 3, 2, 6),)


def by_hand(blind: bool) -> Case:
    hidden = torch.zeros(2, 1, 4, 4, dtype=torch.float64).masked_fill(
        torch.ones(4, 4).triu(1) > 0, -torch.inf
    )
    if blind:
        hidden[1, :, 2] = -torch.inf
    mask = AttentionMask(hidden, backend="manual", blind=blind)
    sinks = None if blind else torch.tensor([0.3, -0.2], dtype=torch.float64)

    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, mask, 0.4, softcap=None if blind else 2.0, sinks_H=sinks)

    return f, (draw(2, 2, 4, 3), draw(2, 1, 4, 3, seed=1), draw(2, 1, 4, 3, seed=2))


CASES: dict[str, Callable[[], Case]] = {
    "nalanda.objectives.cross_entropy._LinearCrossEntropy": lambda: cross_entropy(None, 3),
    "nalanda.objectives.cross_entropy._LinearCrossEntropy, capped logits": lambda: cross_entropy(1.5, 4),
    "nalanda.nn.norm._RMSNormCPU": lambda: (
        lambda x, w: rms_norm_cpu(x, w, 1e-3),
        (draw(3, 4, 6), draw(6, seed=1)),
    ),
    "nalanda.nn.moe._Dispatch": dispatch,
    "nalanda.nn.moe._Combine": combine,
    "nalanda.nn.dropout.dropout_cpu": dropped,
    "nalanda.nn.rotary.rotate": rotated,
    "nalanda.nn.attend.attend, by hand, rows that see nothing": lambda: by_hand(True),
    "nalanda.nn.attend.attend, by hand, capped scores and sinks": lambda: by_hand(False),
}
"""Name of the function (and a variant) -> what is differentiated, and where."""

EXCHANGES = {
    f"nalanda.train.parallel_exchange.{name}" for name in ("_Shared", "_Summed", "_Gathered", "_Sent")
}
"""Those that only several processes can run: tests/exchanges.py."""


def written_by_hand() -> set[str]:
    """Every class of the package that gives torch a gradient, and every operation registered with one."""
    found = set()
    for path in (ROOT / "nalanda").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(b).endswith("Function") for b in node.bases
            ):
                found.add(f"{module}.{node.name}")
            elif isinstance(node, ast.Attribute) and node.attr in ("custom_op", "register_autograd"):
                found.add(f"{module}: {ast.unparse(node)}")
    return found


def test_every_gradient_written_by_hand_has_a_case() -> None:
    covered = {name.partition(",")[0] for name in CASES} | EXCHANGES
    missing = written_by_hand() - covered
    assert not missing, f"add a case to CASES or tests/exchanges.py for {sorted(missing)}"
    assert len(written_by_hand() & covered) >= 8, "the search finds nothing any more"


@pytest.mark.parametrize("name", CASES)
def test_finite_differences(name: str) -> None:
    function, inputs = CASES[name]()
    assert torch.autograd.gradcheck(function, inputs)
    assert largest_error(function, inputs) < 1e-8


def test_exchanges_between_two_processes() -> None:
    for errors in together(2, exchange_errors):
        assert {f"nalanda.train.parallel_exchange.{name}" for name in errors} == EXCHANGES
        assert max(errors.values()) < 1e-8, errors


def largest_error(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], step: float = 1e-6) -> float:
    """The largest difference between gradients and central differences, over the largest slope of each input."""
    weights = draw(*function(*inputs).shape, seed=9).detach()

    def loss() -> Tensor:
        return (function(*inputs) * weights).sum()

    found = torch.autograd.grad(loss(), inputs)
    worst = 0.0
    for value, gradient in zip(inputs, found, strict=True):
        slopes, flat = torch.zeros_like(value).flatten(), value.data.view(-1)
        for place in range(value.numel()):
            kept, sides = float(flat[place]), []
            for sign in (1, -1):
                flat[place] = kept + sign * step
                sides.append(float(loss().detach()))
            flat[place] = kept
            slopes[place] = (sides[0] - sides[1]) / (2 * step)
        worst = max(worst, float((gradient.flatten() - slopes).abs().max() / slopes.abs().max()))
    return worst


# -- a step's gradient, whatever the split -------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "decoder": {"kind": "decoder", "position": "rotary", "norm": "rms", "kv_heads": 2, "qk_norm": True},
    "encoder": {"kind": "encoder", "position": "learned"},
    "encoder_decoder": {
        "kind": "encoder_decoder",
        "position": "relative",
        "norm": "rms",
        "feedforward": "glu",
    },
    "mixture": {"kind": "decoder", "position": "rotary", "moe": {"experts": 4, "top_k": 2, "inner": 16}},
}
SHAPE = {"layers": 2, "hidden": 16, "heads": 4, "inner": 32, "dropout": 0.0, "max_length": 64}
VOCABULARY = 31


def network(kind: str) -> Model:
    torch.manual_seed(1)
    values = {**SHAPE, **KINDS[kind]}
    if values["position"] != "learned":
        values.pop("max_length")
    return Model(build_spec(ModelConfig.model_validate(values), VOCABULARY), {"tokens": TokensHeadSpec()})


def documents(kind: str) -> list[tuple[Tensor, Tensor]]:
    """(tokens, source tokens) of texts of different lengths."""
    generator = torch.Generator().manual_seed(4)
    lengths = [9, 3, 14, 5, 7, 11]

    def text(length: int) -> Tensor:
        return torch.randint(VOCABULARY, (length,), generator=generator)

    return [(text(length), text(length + 2)) for length in lengths]


def rows_of(texts: list[list[tuple[Tensor, Tensor]]], kind: str) -> Batch:
    """A batch whose rows hold one or several texts each."""

    def stream(place: int) -> tuple[Tensor, Tensor, Tensor]:
        width = max(sum(len(text[place]) for text in row) for row in texts)
        ids, segments, positions = (torch.zeros(len(texts), width, dtype=torch.int64) for _ in range(3))
        for index, row in enumerate(texts):
            at = 0
            for number, text in enumerate(row, 1):
                end = at + len(text[place])
                ids[index, at:end], segments[index, at:end] = text[place], number
                positions[index, at:end] = torch.arange(len(text[place]))
                at = end
        return ids, segments.int(), positions.int()

    ids, segments, positions = stream(0)
    batch = Batch(
        ids=ids, segments=segments, positions=positions, targets=(ids * 3 + 1) % VOCABULARY,
        target_weight=(segments != 0).float() * (1 + ids % 3),
    )  # fmt: skip
    if kind == "encoder_decoder":
        batch["source_ids"], batch["source_segments"], batch["source_positions"] = stream(1)
    return batch


def gradient(kind: str, batches: list[Batch]) -> Tensor:
    model = network(kind)
    accumulate(
        model, TokensConfig(label_smoothing=0.1), batches,
        seed=0, step=0, precision="fp32", device=torch.device("cpu"),
    )  # fmt: skip
    return torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


SPLITS: dict[str, list[list[list[int]]]] = {
    "full batch": [[[0], [1], [2], [3], [4], [5]]],
    "accumulated, 3 micro-batches": [[[0], [1], [2]], [[3]], [[4], [5]]],
    "accumulated, a row each": [[[i]] for i in range(6)],
    "packed in 3 rows": [[[0, 1], [2], [3, 4, 5]]],
    "packed in 1 row": [[[0, 1, 2, 3, 4, 5]]],
    "packed and accumulated": [[[2, 3]], [[5, 0, 1, 4]]],
}


def difference(kind: str, split: str) -> float:
    """Relative to the gradient of the full batch, by the norm."""
    texts = documents(kind)
    found = {
        name: gradient(
            kind, [rows_of([[texts[i] for i in row] for row in part], kind) for part in SPLITS[name]]
        )
        for name in ("full batch", split)
    }
    whole = found["full batch"]
    return float((found[split] - whole).norm() / whole.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [name for name in SPLITS if name != "full batch"])
def test_any_split_and_packing_has_the_gradient_of_the_full_batch(kind: str, split: str) -> None:
    assert difference(kind, split) <= 1e-6


def table() -> Iterator[str]:
    """All errors, in Markdown."""
    yield from ("| gradient written by hand | largest relative error |", "| --- | --- |")
    for name, case in CASES.items():
        yield f"| `{name.removeprefix('nalanda.')}` | {largest_error(*case()):.1e} |"
    for name, error in together(2, exchange_errors)[0].items():
        yield f"| `train.parallel_exchange.{name}`, 2 processes | {error:.1e} |"
    yield from ("", f"| gradient of | {' | '.join(KINDS)} |", f"| --- |{' --- |' * len(KINDS)}")
    for split in SPLITS:
        yield f"| {split} | {' | '.join(f'{difference(kind, split):.1e}' for kind in KINDS)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.writelines(f"{line}\n" for line in table())
