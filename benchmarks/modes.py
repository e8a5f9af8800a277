"""How a training step is worked out on CPUs: fp32 or bf16 products, weights in bf16, lanes, compiled code.

    python benchmarks/modes.py                      # three models, all modes in turn, a table of ratios
    python benchmarks/modes.py --jobs causal --rounds 20

One process, whole steps (forward, backward, clipping, AdamW) in turn; each round's times are divided by those of
the base mode of the same round, and the median ratio is shown. Compiling happens before the first round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from nalanda.data.batch import Batch
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
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.allocator import retained
from nalanda.train.lanes import Lanes
from nalanda.train.optimizer import AdamWConfig, Optimizer
from nalanda.train.step import accumulate

VOCABULARY = 16_384
CPU = torch.device("cpu")


@dataclass
class Mode:
    """precision: of products. weights: what the model's are kept in. lanes, compiled: as in training."""

    name: str
    precision: str = "bf16"
    weights: torch.dtype = torch.float32
    lanes: bool = False
    compiled: bool = False
    seconds: list[float] = field(default_factory=list)


def modes() -> list[Mode]:
    return [
        Mode("bf16, lanes (default)", lanes=True),
        Mode("bf16, threads in operations"),
        Mode("bf16, compiled", compiled=True),
        Mode("bf16 weights, lanes", precision="fp32", weights=torch.bfloat16, lanes=True),
        Mode("bf16 weights, compiled", precision="fp32", weights=torch.bfloat16, compiled=True),
        Mode("fp32, lanes", precision="fp32", lanes=True),
        Mode("fp32, threads in operations", precision="fp32"),
    ]


def block(hidden: int, heads: int, inner: int, cross: bool = False, place: Any = "pre") -> BlockSpec:
    attention = AttentionSpec(heads=heads, bias=True)
    return BlockSpec(
        attention=attention,
        cross=attention if cross else None,
        feedforward=FeedForwardSpec(inner=inner, bias=True),
        norm=NormSpec(kind="layer"),
        norm_place=place,
    )


def specs() -> dict[str, Spec]:
    learned = PositionSpec(kind="learned", max_length=256)
    post = block(384, 6, 1536, place="post")
    both = PositionSpec(kind="sinusoidal", max_length=256)
    return {
        "causal": Spec(
            vocabulary=VOCABULARY, hidden=384, decoder=(block(384, 6, 1536),) * 6, decoder_position=learned
        ),
        "masked": Spec(
            vocabulary=VOCABULARY, hidden=384, encoder=(post,) * 6, encoder_position=learned, final_norm=False
        ),
        "seq2seq": Spec(
            vocabulary=VOCABULARY,
            hidden=256,
            encoder=(block(256, 4, 1024, place="post"),) * 4,
            decoder=(block(256, 4, 1024, cross=True, place="post"),) * 4,
            encoder_position=both,
            decoder_position=both,
            final_norm=False,
        ),
    }


def batch(job: str, draw: torch.Generator) -> Batch:
    """Random tokens: 16 x 256, 32 x 128 with 15 % trained, 128 pairs of 8 to 16 and 8 to 16 tokens."""
    rows, width = {"causal": (16, 256), "masked": (32, 128), "seq2seq": (128, 16)}[job]
    values: dict[str, torch.Tensor] = {}
    for prefix in ("", "source_") if job == "seq2seq" else ("",):
        shortest = 8 if job == "seq2seq" else width
        lengths = torch.randint(shortest, width + 1, (rows, 1), generator=draw)
        segments = (torch.arange(width) < lengths).int()
        values[f"{prefix}ids"] = torch.randint(0, VOCABULARY, (rows, width), generator=draw)
        values[f"{prefix}segments"] = segments
        values[f"{prefix}positions"] = torch.arange(width, dtype=torch.int32) * segments
    share = 0.15 if job == "masked" else 1.0
    values["targets"] = torch.randint(0, VOCABULARY, (rows, width), generator=draw)
    values["target_weight"] = (torch.rand(rows, width, generator=draw) < share) * values["segments"].float()
    return Batch(**values)  # type: ignore[typeddict-item]


def measure(job: str, rounds: int) -> list[Mode]:
    """Every mode's seconds for each round."""
    draw, objective = torch.Generator().manual_seed(0), TokensConfig()
    contestants = []
    for mode in modes():
        torch.manual_seed(0)
        model = Model(specs()[job], {"tokens": TokensHeadSpec()}).to(mode.weights)
        if mode.compiled:
            model.compile(dynamic=False)
        contestants.append((mode, model, Optimizer(AdamWConfig(), model)))
    for number in range(rounds + 2):
        data = batch(job, draw)
        for mode, model, optimizer in contestants if number % 2 else contestants[::-1]:
            with Lanes(torch.get_num_threads() if mode.lanes else 1) as lanes:
                began = time.perf_counter()
                accumulate(
                    model,
                    objective,
                    [data],
                    seed=0,
                    step=0,
                    precision=mode.precision,
                    device=CPU,
                    lanes=lanes,
                )
                torch.nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
                optimizer.step(1.0)
                optimizer.zero_grad()
                if number >= 2:  # the first are slow: code is compiled, memory is new
                    mode.seconds.append(time.perf_counter() - began)
    return [mode for mode, _, _ in contestants]


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--jobs", default="causal,masked,seq2seq")
    arguments.add_argument("--rounds", type=int, default=15)
    options = arguments.parse_args()
    isa = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {isa}")  # noqa: T201
    for job in options.jobs.split(","):
        with retained():
            found = measure(job, options.rounds)
        print(f"\n| {job} | seconds a step | speed beside the default |\n|---|---|---|")  # noqa: T201
        for mode in found:
            ratio = statistics.median(a / b for a, b in zip(found[0].seconds, mode.seconds, strict=True))
            print(f"| {mode.name} | {statistics.median(mode.seconds):.3f} | {ratio:.2f} x |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
