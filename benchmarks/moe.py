"""A mixture of experts against a dense network of the same work per token and against a loop over experts with masks.

    python benchmarks/moe.py [THREADS]      # prints a table: tokens/s forward and backward, ratios and their ranges

`masks` is the common way (each expert finds its tokens by a mask and adds its output in place) on our weights;
`transformers` is its MixtralSparseMoeBlock, where it is installed. All take turns on the same tokens, in fp32; a
ratio is of neighbouring passes. The dense GLU is top_k x inner wide.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nalanda.base import machine
from nalanda.nn.feedforward import build_feedforward
from nalanda.nn.moe import MoE
from nalanda.nn.spec import FeedForwardSpec, MoESpec

TURNS = 7
SIZES = (  # hidden, inner, experts, top_k, tokens
    (256, 512, 8, 2, 4096),
    (256, 128, 32, 4, 4096),
    (256, 128, 64, 8, 2048),
)


def masks(moe: MoE, x_ND: Tensor) -> Tensor:
    """What `moe` computes, with a loop over experts."""
    chosen_NK, weights_NK = moe.router.choose(moe.router(x_ND))
    y_ND = torch.zeros_like(x_ND)
    mask_EKN = F.one_hot(chosen_NK, moe.spec.experts).permute(2, 1, 0)
    for expert in range(moe.spec.experts):
        slot, token = torch.where(mask_EKN[expert])
        gate, up = F.linear(x_ND[token], moe.experts.gate_up.weight[expert]).chunk(2, dim=-1)
        said = F.linear(F.silu(gate) * up, moe.experts.output.weight[expert])
        y_ND.index_add_(0, token, said * weights_NK[token, slot, None])
    return y_ND


def theirs(hidden: int, inner: int, experts: int, top_k: int) -> Any:
    """transformers' block, or None where it is not installed."""
    try:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    except ImportError:
        return None
    config = MixtralConfig(
        hidden_size=hidden, intermediate_size=inner, num_local_experts=experts, num_experts_per_tok=top_k
    )
    block = MixtralSparseMoeBlock(config)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return block


def seconds(f: Callable[[Tensor], Tensor], weights: list[Tensor], x: Tensor) -> float:
    """Of one forward and backward pass."""
    began = time.perf_counter()
    y = f(x)
    torch.autograd.grad(y, [x, *weights], torch.ones_like(y))
    return time.perf_counter() - began


def compare(hidden: int, inner: int, experts: int, top_k: int, tokens: int) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    moe = MoE(MoESpec(experts=experts, top_k=top_k, inner=inner), hidden)
    dense = build_feedforward(FeedForwardSpec(kind="glu", inner=top_k * inner, activation="silu"), hidden)
    for weight in [*moe.parameters(), *dense.parameters()]:
        torch.nn.init.normal_(weight, std=0.02)
    ways: dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]] = {
        "grouped": (moe, list(moe.parameters())),
        "dense": (dense, list(dense.parameters())),
        "masks": (lambda x: masks(moe, x[0])[None], list(moe.parameters())),
    }
    block = theirs(hidden, inner, experts, top_k)
    if block is not None:
        ways["transformers"] = (block, list(block.parameters()))
    x = torch.randn(1, tokens, hidden, requires_grad=True)
    torch.testing.assert_close(ways["grouped"][0](x), ways["masks"][0](x), rtol=1e-4, atol=1e-5)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name in list(ways) if turn % 2 else list(reversed(ways)):
            found = seconds(*ways[name], x)
            if turn >= 1:
                times[name].append(found)
    cells = [
        f"{experts} x {inner}, top {top_k}, hidden {hidden}",
        f"{tokens / _median(times['grouped']):,.0f}",
    ]
    for name in ("dense", "masks", "transformers"):
        if name not in times:
            cells.append("-")
            continue
        ratios = sorted(other / own for own, other in zip(times["grouped"], times[name]))
        rate = f"{tokens / _median(times[name]):,.0f}"
        cells.append(f"{rate} ({_median(ratios):.2f}; {ratios[0]:.2f} to {ratios[-1]:.2f})")
    return f"| {' | '.join(cells)} |"


def _median(values: list[float]) -> float:
    return statistics.median(values)


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else machine.cores())
    facts = machine.environment()
    lines = [
        f"{facts['cpu']}, {torch.get_num_threads()} threads, torch {facts['packages']['torch']}; "
        "in brackets how many times faster grouped is",
        "",
        "| experts | grouped, tokens/s | dense of the same work | masks | transformers |",
        "| --- | --- | --- | --- | --- |",
        *[compare(*sizes) for sizes in SIZES],
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
