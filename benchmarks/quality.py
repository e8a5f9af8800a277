"""Time to quality: how long our recipes need for what a peer's own recipe reaches in N minutes, on the same data.

    NALANDA_DATA=... NANOGPT=~/nanoGPT PEERS_PYTHON=~/peers/bin/python \\
        python benchmarks/quality.py --minutes 20 --seeds 3 --jobs causal,masked,translation

    job          data             peer's recipe                       score
    causal       lm/english       nanoGPT (tuned, bf16, compiled)     bits per byte of held-out text
    masked       lm/english       BERT in transformers                nats at held-out masked places, same masks
    translation  mt/ui hin        Marian in transformers              chrF++ of held-out rows, greedy

For each seed the peer trains N minutes, and so does ours; ours trains also for a third of that (`--share 3`)
with its schedule drawn together. Contestants run one after the other, the order turned with the seed, each with
all threads. The clock of each counts its own time: building, compiling (from an empty cache), data and steps;
scoring stands outside. Same documents, tokenizer and number of parameters or fewer; the score does not depend
on packing.

What is finished (a file in --work) is not run again, so the same command goes on after an interruption.
Settings of peers: `--peer rows=32 lr=2e-3`; changes of ours: `--ours optimizer.lr=0.01`; `--tune causal` tries
the peer's grid on `--minutes` and prints the best. The table goes to benchmarks/results/DATE_quality.md.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import quality_data

from nalanda.base import io, machine

HERE = Path(__file__).parent


class Job(NamedTuple):
    """Who runs against whom, and what is counted. `grid`: the peer's settings to try."""

    peer: str
    script: str
    score: str
    unit: str
    higher: bool
    grid: dict[str, list[Any]]


JOBS = {
    "causal": Job(
        "nanoGPT", "quality_nanogpt.py", "held-out bits per byte", "bits/byte", False,
        {"rows": [8, 16, 32], "lr": [1e-3, 2e-3, 4e-3]},
    ),
    "masked": Job(
        "BERT", "quality_bert.py", "held-out loss at masked places", "nats", False,
        {"rows": [16, 32, 64], "lr": [5e-4, 1e-3, 2e-3], "dropout": [0.1, 0.0]},
    ),
    "translation": Job(
        "Marian", "quality_marian.py", "chrF++", "chrF++", True,
        {"batch_tokens": [2048, 4096], "lr": [5e-4, 1e-3, 2e-3], "dropout": [0.1]},
    ),
}  # fmt: skip


def contestants(args: argparse.Namespace, job: str, seed: int) -> list[tuple[str, float]]:
    """(name, minutes) in the order they run: peers first for even seeds."""
    found = [("peer", args.minutes), ("ours", args.minutes)]
    if args.share > 1:
        found.append((f"ours{args.share:g}", args.minutes / args.share))
    if args.only:
        found = [(name, minutes) for name, minutes in found if name in args.only.split(",")]
    return found if seed % 2 == 0 else found[::-1]


def run_one(
    args: argparse.Namespace, job: str, name: str, seed: int, minutes: float, extra: list[str]
) -> Path:
    """Runs one contestant, or finds that it was run with the same settings before; returns its file."""
    places = quality_data.prepare(job, args.work)
    spec: dict[str, Any] = {
        "job": job, "seed": seed, "seconds": minutes * 60, "every": minutes * 60 / args.points,
        **{key: str(place.resolve()) for key, place in places.items()},
    }  # fmt: skip
    if name == "peer":
        spec |= {"settings": {k: json.loads(v) for k, _, v in (pair.partition("=") for pair in extra)}}
        command = [args.peers_python if job != "causal" else sys.executable, str(HERE / JOBS[job].script)]
    else:
        recipe = args.recipe or HERE / "recipes" / f"{job}.yaml"
        spec |= {"recipe": str(recipe), "changes": extra, "name": "Nalanda"}
        spec["recipe_hash"] = io.sha256_file(Path(recipe))
        command = [sys.executable, str(HERE / "quality_ours.py")]
    text = "pairs" if job == "translation" else "text"
    data = io.sha256_file(HERE / "recipes" / f"quality_{text}.yaml")
    mark = io.fingerprint({"data": data, **{k: v for k, v in spec.items() if k not in places}})[:8]
    out = args.work / "curves" / f"{job}-{name}-{minutes:g}min-seed{seed}-{mark}.json"
    spec["out"] = str(out.resolve())
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as cache:  # nobody compiled before
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "XDG_CACHE_HOME": cache}
            subprocess.run([*command, json.dumps(spec)], check=True, env=environment)
    return out


def reached(curve: list[list[float]], goal: float, higher: bool) -> float | None:
    """Own seconds at which the curve first is as good as `goal`, between points on a straight line."""
    before: list[float] | None = None
    for seconds, score in curve:
        if score >= goal if higher else score <= goal:
            if before is None or score == before[1]:
                return seconds
            return before[0] + (seconds - before[0]) * (goal - before[1]) / (score - before[1])
        before = [seconds, score]
    return None


def grid(values: dict[str, list[Any]]) -> Iterator[list[str]]:
    """All settings of a grid, as KEY=VALUE."""
    for picked in itertools.product(*values.values()):
        yield [f"{key}={json.dumps(value)}" for key, value in zip(values, picked)]


def tune(args: argparse.Namespace, job: str) -> None:
    """The peer's grid at `--minutes`, best last."""
    rows = []
    for extra in grid(JOBS[job].grid):
        found = json.loads(run_one(args, job, "peer", 0, args.minutes, extra).read_text())
        rows.append((found["curve"][-1][1], " ".join(extra), found["steps"]))
    for score, extra, steps in sorted(rows, reverse=not JOBS[job].higher):
        sys.stdout.write(f"{score:.4f}  {steps:6d} steps  {extra}\n")


def race(args: argparse.Namespace, job: str) -> list[dict[str, Any]]:
    """All contestants of a job over all seeds; one row of results for each seed."""
    rows = []
    for seed in range(args.seeds):
        found: dict[str, Any] = {"seed": seed}
        for name, minutes in contestants(args, job, seed):
            extra = args.peer if name == "peer" else args.ours
            path = run_one(args, job, name, seed, minutes, extra)
            found[name] = json.loads(path.read_text())
        rows.append(found)
    return rows


def table(args: argparse.Namespace, job: str, rows: list[dict[str, Any]]) -> list[str]:
    """Markdown of one job."""
    about, third = JOBS[job], f"ours{args.share:g}"
    short = args.minutes / args.share
    heads = [
        "seed", f"{about.peer}, {args.minutes:g} min", f"Nalanda, {args.minutes:g} min", f"Nalanda, {short:.3g} min",
        f"Nalanda reaches {about.peer}'s end at", "ratio",
    ]  # fmt: skip
    lines = [f"## {job}: {about.score}", "", _row(heads), _row(["---"] * len(heads))]
    ratios = []
    for row in (row for row in rows if "peer" in row):
        seconds, goal = row["peer"]["curve"][-1]
        times = [reached(row[name]["curve"], goal, about.higher) for name in ("ours", third) if name in row]
        at = min((time for time in times if time is not None), default=None)
        scores = [f"{row[n]['curve'][-1][1]:.4f}" if n in row else "" for n in ("peer", "ours", third)]
        if at is None:
            lines.append(_row([str(row["seed"]), *scores, "never", ""]))
        else:
            ratios.append(seconds / at)
            lines.append(_row([str(row["seed"]), *scores, f"{at:.0f} s", f"{ratios[-1]:.2f} x"]))
    if ratios:
        spread = f"from {min(ratios):.2f} to {max(ratios):.2f}"
        lines += ["", f"Median ratio {statistics.median(ratios):.2f} ({spread})."]
    facts = ["parameters", "steps", "tokens", "precision", "compiled", "threads"]
    lines += ["", _row(["contestant", *facts]), _row(["---"] * (len(facts) + 1))]
    for name in ("peer", "ours", third):
        found = rows[0].get(name)
        if found is not None:
            values = [found.get(fact, "") for fact in facts]
            shown = [f"{value:,}" if type(value) is int else str(value) for value in values]
            lines.append(_row([f"{found['contestant']} ({name})", *shown]))
    return [*lines, ""]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--jobs", default="causal,masked,translation")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=3.0, help="ours also runs for minutes / share; 1: not")
    parser.add_argument("--points", type=int, default=20, help="points of each curve")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON", sys.executable))
    parser.add_argument("--recipe", type=Path, help="ours, instead of benchmarks/recipes/JOB.yaml")
    parser.add_argument("--peer", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--ours", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", default="", help="run these alone, for example: peer")
    parser.add_argument("--tune", action="store_true", help="try the peers' grids instead")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    return parser.parse_args()


def main() -> None:
    """Runs the jobs and writes the table."""
    args = options()
    args.work = args.work.resolve()
    facts = machine.environment()
    where = f"{facts['cpu']}, {facts['cores']} cores, torch {facts['packages']['torch']}, commit {facts['commit']}"
    command = f"python benchmarks/quality.py {' '.join(sys.argv[1:])}"
    lines = [
        "# Time to quality",
        "",
        f"{where}. Command: `{command}`. What is compared and what the clock counts: benchmarks/quality.py.",
        "",
    ]
    for job in args.jobs.split(","):
        if args.tune:
            tune(args, job)
        else:
            lines += table(args, job, race(args, job))
    if not args.tune:
        args.results.mkdir(parents=True, exist_ok=True)
        path = args.results / f"{datetime.date.today()}_quality.md"
        path.write_text("\n".join(lines), encoding="utf-8")
        sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main()
