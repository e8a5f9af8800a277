"""Attention's backends on this CPU, in turn on the same tensors: what nn/mask.py's choice of a backend rests on.

    python benchmarks/attention.py            # prints tables; benchmarks/results/ keeps one with machine and versions

A ratio is of two neighbouring runs, SDPA's time over the manual way's: above 1 the manual way is faster. Attention of
4 heads (2 for keys and values) of 64 numbers, 2048 tokens a batch (one row from there on), one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nalanda.base import machine
from nalanda.nn import mask as masks
from nalanda.nn.attend import attend
from nalanda.nn.mask import AttentionMask, Places, Sight, build_mask

HEADS, GROUPS, DIM, TOKENS = 4, 2, 64, 2048
LENGTHS = (64, 256, 512, 1024, 4096)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Way = Callable[..., Tensor]


class Case(NamedTuple):
    """What is timed: causal, packed (documents of a quarter row), window (an eighth of the row), learned (a trained
    bias), step (of decoding)."""

    kind: str
    length: int
    dtype: str
    training: bool


def make_masks(case: Case, rows: int) -> dict[str, AttentionMask]:
    """The masks that both ways would be given."""
    length, dtype = case.length, DTYPES[case.dtype]
    segments = None
    if case.kind == "packed":
        segments = (torch.arange(length) * 4 // length + 1).expand(rows, length)
    places = Places(segments, torch.arange(length)[None])
    learned = torch.randn(1, HEADS, length, length).requires_grad_() if case.kind == "learned" else None
    query = Places(None, torch.tensor([[length - 1]])) if case.kind == "step" else places
    window = length // 8 if case.kind == "window" else None
    found = {}
    kept = masks.choose_backend
    for backend in ("sdpa", "manual"):
        masks.choose_backend = lambda *_, backend=backend: backend  # type: ignore[assignment]
        found[backend] = build_mask(
            Sight(query, places, case.kind != "step", window), learned, dtype, masks.NOTHING, blind=False
        )
    masks.choose_backend = kept
    return found


def seconds(way: Way, inputs: list[Tensor], mask: AttentionMask, training: bool) -> float:
    """Of one forward pass, in training with its backward pass."""
    began = time.perf_counter()
    if training:
        out = way(*inputs, mask, DIM**-0.5)
        torch.autograd.grad(out, [*inputs], out.detach(), retain_graph=mask.bias is not None)
    else:
        with torch.inference_mode():
            way(*inputs, mask, DIM**-0.5)
    return time.perf_counter() - began


def compare(case: Case, compiled: bool) -> str:
    """One row of the table."""
    rows = max(1, TOKENS // case.length) if case.kind != "step" else 8
    width = 1 if case.kind == "step" else case.length
    torch.manual_seed(0)
    inputs = [
        torch.randn(rows, heads, places, DIM, dtype=DTYPES[case.dtype]).requires_grad_()
        for heads, places in ((HEADS, width), (GROUPS, case.length), (GROUPS, case.length))
    ]
    found = make_masks(case, rows)
    torch.compiler.reset()
    way = torch.compile(attend, dynamic=False) if compiled else attend
    times: dict[str, list[float]] = {"sdpa": [], "manual": []}
    turns = 9 if case.length < 1024 else 5 if case.length < 4096 else 3
    for turn in range(turns + 1):
        for backend in ("sdpa", "manual") if turn % 2 else ("manual", "sdpa"):
            took = seconds(way, inputs, found[backend], case.training)
            if turn:
                times[backend].append(took)
    ratios = sorted(one / two for one, two in zip(times["sdpa"], times["manual"], strict=True))
    one, two = (1e3 * statistics.median(times[backend]) for backend in ("sdpa", "manual"))
    what = "forward + backward" if case.training else "forward"
    how = "compiled" if compiled else "eager"
    return (
        f"| {case.kind} | {case.length} | {case.dtype} | {what} | {how} | {one:.2f} | {two:.2f} "
        f"| {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |"
    )


def errors() -> list[str]:
    """How far both ways in bf16 are from float64 on the same numbers, relative, for usual and for great scores."""
    lines = []
    for size in (1.0, 4.0):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 4, 512, DIM).mul(size if x < 2 else 1).bfloat16() for x in range(3))
        exact = attend(q.double(), k.double(), v.double(), AttentionMask(causal=True), DIM**-0.5)
        far = [
            float((attend(q, k, v, mask, DIM**-0.5).double() - exact).norm() / exact.norm())
            for mask in (AttentionMask(causal=True), AttentionMask(causal=True, backend="manual"))
        ]
        lines.append(f"| {size**2:.0f} | {far[0]:.1e} | {far[1]:.1e} |")
    return lines


def main() -> None:
    """Prints the tables."""
    torch.set_num_threads(1)
    facts = machine.environment()
    cases = [
        (Case(kind, length, dtype, training), False)
        for kind in ("causal", "packed", "window", "learned")
        for dtype in DTYPES
        for length in LENGTHS
        for training in (False, True)
        if kind != "learned" or (training and length <= 1024)
        if kind != "window" or length >= 1024
    ]
    cases += [(Case("step", length, dtype, False), False) for dtype in DTYPES for length in (64, 512, 4096)]
    cases += [
        (Case(kind, length, "bf16", training), True)
        for kind in ("causal", "packed")
        for length in (256, 1024)
        for training in (False, True)
    ]
    lines = [
        f"{facts['cpu']}, one thread, torch {facts['packages']['torch']}",
        "",
        "| mask | keys | type | pass | compiled | sdpa, ms | manual, ms | median ratio | range |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    for case, compiled in cases:
        sys.stdout.write(compare(case, compiled) + "\n")
        sys.stdout.flush()
    sys.stdout.write("\n| scores' standard deviation | sdpa | manual |\n| --- | --- | --- |\n")
    sys.stdout.write("\n".join(errors()) + "\n")


if __name__ == "__main__":
    main()
