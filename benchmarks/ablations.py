"""One option changed at a time: what each part of our recipes gains, at equal tokens, and what it costs in time.

    NALANDA_DATA=... python benchmarks/ablations.py --scale full --seeds 3
    python benchmarks/ablations.py --only "no value embeddings,AdamW" --seeds 1

Runs are those of benchmarks/quality_ours.py on the data of the job `causal`: the base is
benchmarks/recipes/causal.yaml at the scale asked for, every row of ROWS changes it. All see the same documents
in the same order for the same number of tokens (or with `--minutes` for an equal time, on a quiet machine); a
difference of seeds is the noise. A step's time is the median of neighbouring pairs of steps of base and row,
taken in turn in one process, so that a busy machine does not decide. What is finished in --work is not run
again. The table goes to benchmarks/results/DATE_ablations.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import quality_data
import quality_ours
import torch

from nalanda.base import io, machine
from nalanda.models.plain import build_spec, token_head
from nalanda.nn.model import Model
from nalanda.stages.train import TrainStage
from nalanda.train.optimizer import Optimizer
from nalanda.train.precision import resolve
from nalanda.train.step import accumulate

HERE = Path(__file__).parent

SCALES: dict[str, tuple[int, list[str]]] = {
    "tiny": (200, ["model.hidden=128", "model.heads=2"]),
    "full": (800, []),
}
"""Steps and what makes the recipe smaller."""

ROWS: dict[str, list[str]] = {
    "base": [],
    "AdamW": ["optimizer={kind: adamw, lr: 0.003, betas: [0.9, 0.95], weight_decay: 0.1}"],
    "Muon's products in fp32": ["optimizer.products=fp32"],
    "rate x 0.5": ["optimizer.lr=0.5x"],
    "rate x 2": ["optimizer.lr=2x"],
    "other rate x 0.5": ["optimizer.other_lr=0.5x"],
    "other rate x 2": ["optimizer.other_lr=2x"],
    "NorMuon": ["optimizer.neurons=0.95"],
    "cautious decay 0.1": ["optimizer.cautious=true", "optimizer.weight_decay=0.1"],
    "decay 0": ["optimizer.weight_decay=0"],
    "momentum 0.9": ["optimizer.momentum=0.9"],
    "5 Jordan steps": ["optimizer.newton_schulz_steps=5", "optimizer.polynomial=jordan"],
    "5 minimax steps": ["optimizer.newton_schulz_steps=5", "optimizer.polynomial=minimax"],
    "4 minimax steps": ["optimizer.newton_schulz_steps=4", "optimizer.polynomial=minimax"],
    "3 minimax steps": ["optimizer.newton_schulz_steps=3", "optimizer.polynomial=minimax"],
    "spectral scale": ["optimizer.scale=spectral", "optimizer.lr=6x"],
    "averaged weights": ["ema={decay: 0.99}"],
    "embeddings' rate x 3": ["optimizer.rates={embedding: 3.0}"],
    "cosine": ["schedule={kind: cosine, warmup: 0.02}"],
    "linear": ["schedule={kind: linear, warmup: 0.02}"],
    "1 - sqrt cooldown": ["schedule.cooldown=sqrt"],
    "cooldown of a fifth": ["schedule.decay=0.2"],
    "gelu": ["model.activation=gelu_tanh"],
    "glu with silu": ["model.feedforward=glu", "model.activation=silu"],
    "no qk-norm": ["model.qk_norm=false"],
    "learned positions": ["model.position=learned"],
    "tied head": ["model.tie_embeddings=true", "model.init_zero=[residual]"],
    "nothing starts at 0": ["model.init_zero=[]"],
    "normal init": ["model.init=normal"],
    "no embedding norm": ["model.embedding_norm=false"],
    "2 layers": ["model.layers=2"],
    "3 layers": ["model.layers=3"],
    "6 layers": ["model.layers=6"],
    "192 wide": ["model.hidden=192", "model.heads=3"],
    "320 wide": ["model.hidden=320", "model.heads=5"],
    "384 wide": ["model.hidden=384", "model.heads=6"],
    "6 layers and 384 wide": ["model.layers=6", "model.hidden=384", "model.heads=6"],
    "feed-forward 3 wide": ["model.inner=768"],
    "no value embeddings": ["model.value_embeddings=none"],
    "value embeddings: ends": ["model.value_embeddings=ends"],
    "value embeddings: all": ["model.value_embeddings=all"],
    "no bigrams": ["model.bigrams=null", "model.bigram_width=null"],
    "bigrams: 8192": ["model.bigrams=8192", "model.bigram_width=null"],
    "bigrams: 32768": ["model.bigrams=32768", "model.bigram_width=null"],
    "bigrams: 65536 rows of 64": ["model.bigrams=65536", "model.bigram_width=64"],
    "mix with the token before": ["model.previous_mix=true"],
    "no mix with the token before": ["model.previous_mix=false"],
    "mix with the beginning": ["model.first_mix=true"],
    "no mix with the beginning": ["model.first_mix=false"],
    "logit softcap 15": ["model.logit_softcap=15"],
    "z-loss 1e-4": ["objective={kind: tokens, z_loss: 1e-4}"],
    "batches / 2 for the first 200 steps": ["data.warmup=[{steps: 200, batch: 2}]"],
    "rows / 4 for the first 200 steps": ["data.warmup=[{steps: 200, length: 4}]"],
    "half the batch and twice the steps": ["data.batch_tokens=0.5x"],
}
"""Changes of the recipe; `2x` multiplies what stands there. A row that changes nothing is left out of the table."""


def changes(base: TrainStage, row: list[str]) -> list[str]:
    """The row's changes with every `Nx` worked out."""
    found = []
    for change in row:
        key, _, value = change.partition("=")
        if value.endswith("x") and value[:-1].replace(".", "").isdigit():
            at: Any = base.to_dict()
            for part in key.split("."):
                at = at[part]
            number = float(value[:-1]) * at
            value = str(int(number)) if isinstance(at, int) else f"{number:.6g}"
        found.append(f"{key}={value}")
    return found


class Ablations:
    """The base at one scale, and runs of it and of its changes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.places = {
            key: str(place.resolve()) for key, place in quality_data.prepare("causal", args.work).items()
        }
        steps, smaller = SCALES[args.scale]
        self.steps, self.smaller = args.steps or steps, smaller
        self.base = quality_ours.recipe(self.spec([], 0))

    def spec(self, row: list[str], seed: int) -> dict[str, Any]:
        """What quality_ours.py is told."""
        minutes = self.args.minutes
        return {
            "job": "causal", "name": "ablation", "recipe": str(self.args.recipe), "seed": seed, "every": 1e12,
            "changes": [*self.smaller, *row], **self.places,
            **({"seconds": 60 * minutes} if minutes else {"steps": self.steps}),
        }  # fmt: skip

    def config(self, row: list[str]) -> TrainStage:
        """The row's stage."""
        return quality_ours.recipe(self.spec(changes(self.base, row), 0))

    def score(self, row: list[str], seed: int) -> dict[str, Any]:
        """The finished run of a row: trained now, or found."""
        spec = self.spec(changes(self.base, row), seed)
        if batch := next((c for c in spec["changes"] if c.startswith("data.batch_tokens") and c in row), ""):
            raise ValueError(f"{batch}: give it as Nx")
        tokens: Any = self.config(row).data
        base: Any = self.base.data
        if "steps" in spec:
            spec["steps"] = self.steps * base.batch_tokens // tokens.batch_tokens
            spec["steps"] += sum(rung.steps - rung.steps // rung.batch for rung in tokens.warmup)
        config = quality_ours.recipe(spec).to_dict()
        for key in ("corpus", "tokenizer"):
            config["data"].pop(key)
        mark = io.fingerprint(config)
        out = self.args.work / "ablations" / f"{mark}.json"
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            spec["out"] = str(out)
            subprocess.run([sys.executable, str(HERE / "quality_ours.py"), json.dumps(spec)], check=True)
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    def cost(self, row: list[str], turns: int = 8) -> float:
        """How long a step of the row takes, as a share of the base's."""
        ours, theirs = _Steps(self.base), _Steps(self.config(row))
        ratios = []
        for turn in range(turns + 2):
            pair = [ours, theirs] if turn % 2 else [theirs, ours]
            seconds = {id(each): each.step() for each in pair}
            if turn >= 2:
                ratios.append(seconds[id(theirs)] / seconds[id(ours)])
        return statistics.median(ratios)


class _Steps:
    """Steps of a stage on random tokens, timed: forward, backward, update. Uncompiled."""

    def __init__(self, config: TrainStage) -> None:
        torch.manual_seed(0)
        data, described = config.data, config.model
        vocabulary = 4096
        self.model = Model(build_spec(described, vocabulary), {"tokens": token_head(described)})  # type: ignore[arg-type]
        self.optimizer = Optimizer(config.optimizer, self.model)
        rows, width = data.batch_tokens // data.max_length, data.max_length  # type: ignore[union-attr]
        self.batch: Any = {
            "ids": torch.randint(vocabulary, (rows, width)),
            "targets": torch.randint(vocabulary, (rows, width)),
            "target_weight": torch.ones(rows, width),
            "segments": torch.ones(rows, width, dtype=torch.int32),
            "positions": torch.arange(width, dtype=torch.int32).expand(rows, width).contiguous(),
        }
        self.config = config

    def step(self) -> float:
        """Seconds."""
        device = torch.device("cpu")
        began = time.perf_counter()
        accumulate(
            self.model, self.config.objective, [self.batch], seed=0, step=0,
            precision=resolve(self.config.precision, device), device=device,
        )  # fmt: skip
        self.optimizer.step(1.0)
        self.optimizer.zero_grad()
        return time.perf_counter() - began


def table(found: Ablations, rows: dict[str, list[str]], seeds: int) -> list[str]:
    """Markdown: a row for each option."""
    base = [found.score([], seed)["curve"][-1][1] for seed in range(seeds)]
    lines = [
        "| changed | bits per byte | difference to base | step time |",
        "| --- | --- | --- | --- |",
        f"| base | {statistics.mean(base):.4f} | spread of seeds {max(base) - min(base):.4f} | 1.00 |",
    ]
    for name, row in rows.items():
        if not row or found.config(row) == found.base:
            continue
        scores = [found.score(row, seed)["curve"][-1][1] for seed in range(seeds)]
        differences = [score - before for score, before in zip(scores, base)]
        spread = f" ({min(differences):+.4f} to {max(differences):+.4f})" if seeds > 1 else ""
        cost = f"{found.cost(row):.2f}" if found.args.time else ""
        lines.append(
            f"| {name} | {statistics.mean(scores):.4f} | {statistics.mean(differences):+.4f}{spread} | {cost} |"
        )
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    return lines


def main() -> None:
    """Runs what is not done and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--steps", type=int, help="instead of the scale's")
    parser.add_argument(
        "--minutes", type=float, help="equal times instead of equal tokens; needs a quiet machine"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of rows, with commas")
    parser.add_argument(
        "--time", action=argparse.BooleanOptionalAction, default=True, help="measure step times"
    )
    parser.add_argument("--recipe", type=Path, default=HERE / "recipes" / "causal.yaml")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    args.work = args.work.resolve()
    found = Ablations(args)
    rows = {name: ROWS[name] for name in args.only.split(",")} if args.only else ROWS
    facts = machine.environment()
    data: Any = found.base.data
    length = (
        f"{args.minutes:g} minutes" if args.minutes else f"{found.steps} steps of {data.batch_tokens} tokens"
    )
    lines = [
        "# Options, one at a time",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, torch {facts['packages']['torch']}, commit {facts['commit']}; "
        f"scale {args.scale}: {' '.join(found.smaller) or 'the whole recipe'}, {length}, {args.seeds} seeds. "
        "Differences below 0 are better. How it is measured: benchmarks/ablations.py.",
        "",
        *table(found, rows, args.seeds),
    ]
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{datetime.date.today()}_ablations.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
