"""Whether a learning rate found at a small width holds at a larger one, with and without muP.

    NALANDA_DATA=... python benchmarks/transfer.py --widths 64,128,256 --rates 1,2,4,8,16 --steps 300

Decoders of 4 layers and heads of 32 dimensions are trained for equal tokens on the data of
benchmarks/quality.py; `rates` are in thousandths. `plain` is AdamW with one rate for all weights and normal
initialization; `mup` has `init: mup` and `base_width` of the smallest width; `muon` has spectral updates, which
need no base. What is finished in --work is not run again. The table goes to
benchmarks/results/DATE_transfer.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import quality_data

from nalanda.base import io, machine

HERE = Path(__file__).parent


def ways(base: int) -> dict[str, list[str]]:
    """The changes of the recipe of each way; RATE stands for the rate."""
    adam = "optimizer={kind: adamw, lr: RATE, betas: [0.9, 0.95], weight_decay: 0.0"
    others = ["model.value_embeddings=none", "model.bigrams=null", "model.bigram_width=null"]
    return {
        "plain": [f"{adam}}}", "model.init=normal", "model.init_zero=[]", *others],
        "mup": [f"{adam}, base_width: {base}}}", "model.init=mup", "model.init_zero=[]", *others],
        "muon": [
            "optimizer={kind: muon, lr: RATE, other_lr: 0.004, scale: spectral, products: bf16, "
            f"base_width: {base}}}",
            "model.init=mup",
            "model.init_zero=[]",
            *others,
        ],
    }


def score(args: argparse.Namespace, places: dict[str, str], row: list[str], width: int, rate: float) -> float:
    """Bits per byte after the last step."""
    changes = [
        "model.layers=4", f"model.hidden={width}", f"model.heads={width // 32}", "data.batch_tokens=4096",
        "data.warmup=[]", *[change.replace("RATE", f"{rate:g}") for change in row],
    ]  # fmt: skip
    recipe = HERE / "recipes" / "causal.yaml"
    spec: dict[str, Any] = {
        "job": "causal", "name": "transfer", "recipe": str(recipe), "seed": 0, "every": 1e12,
        "steps": args.steps, "changes": changes,
    }  # fmt: skip
    mark = io.fingerprint({**spec, "recipe": io.sha256_file(recipe)})
    out = args.work / "transfer" / f"{mark}.json"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            str(HERE / "quality_ours.py"),
            json.dumps({**spec, **places, "out": str(out)}),
        ]
        if subprocess.run(command, check=False).returncode:
            return float("nan")  # a rate that is too high ends in a loss that is not finite
    return float(json.loads(out.read_text())["curve"][-1][1])


def main() -> None:
    """Runs what is not done and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--widths", default="64,128,256")
    parser.add_argument("--rates", default="1,2,4,8,16,32", help="in thousandths")
    parser.add_argument("--ways", default="plain,mup,muon")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    args.work = args.work.resolve()
    places = {key: str(place.resolve()) for key, place in quality_data.prepare("causal", args.work).items()}
    widths = [int(width) for width in args.widths.split(",")]
    rates = [float(rate) / 1000 for rate in args.rates.split(",")]
    facts = machine.environment()
    lines = [
        "# Rates across widths",
        "",
        f"{facts['cpu']}, torch {facts['packages']['torch']}, commit {facts['commit']}; {args.steps} steps of 4,096 "
        "tokens, bits per byte of held-out text; the best rate of each width is marked. What is compared: "
        "benchmarks/transfer.py.",
        "",
        f"| way | width | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "| --- | --- |" + " --- |" * len(rates),
    ]
    for way in args.ways.split(","):
        for width in widths:
            row = ways(min(widths))[way]
            scores = [score(args, places, row, width, rate) for rate in rates]
            best = min(s for s in scores if s == s)
            shown = [f"**{s:.4f}**" if s == best else f"{s:.4f}" for s in scores]
            lines.append(f"| {way} | {width} | {' | '.join(shown)} |")
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{datetime.date.today()}_transfer.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
