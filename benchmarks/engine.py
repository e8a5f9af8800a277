"""Nalanda's training loop beside others' on this machine, step by step in turn: speed, memory, share of the peak.

    PEERS_PYTHON=.../bin/python NANOGPT=.../nanoGPT NALANDA_DATA=.../data python benchmarks/engine.py
    ... --jobs causal,masked --contestants nalanda,hf-default,hf-tuned --rounds 40
    ... --contestants nalanda,hf-tuned+attention=eager          # another setting of one contestant

Each contestant is a process of its own with its own interpreter: Nalanda's is the one that runs this file, the peers'
is PEERS_PYTHON, an environment with torch of the same version and whichever of transformers and accelerate, litgpt,
joeynmt are to be timed; nanoGPT is a clone. In each round every contestant does the same number of whole optimizer
steps, alone: data, clipping, schedule, logging, evaluation and checkpoints are inside. benchmarks/engine_peers holds
one file for each; race.py there says how turns are given. The table goes to benchmarks/results/DATE_engine.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "engine_peers"))
from prepare import prepare
from race import Contestant, ContestantError, Machine, Record, order
from report import Result, page

HERE = Path(__file__).resolve().parent
JOBS: dict[str, dict[str, Any]] = {
    "causal": {
        "layers": 6,
        "hidden": 384,
        "heads": 6,
        "inner": 1536,
        "length": 256,
        "vocabulary": 16384,
        "batch_tokens": 4096,
    },
    "masked": {
        "layers": 6,
        "hidden": 384,
        "heads": 6,
        "inner": 1536,
        "length": 128,
        "vocabulary": 16384,
        "batch_tokens": 4096,
        "masked": 0.15,
    },
    "seq2seq": {
        "layers": 4,
        "hidden": 256,
        "heads": 4,
        "inner": 1024,
        "length": 128,
        "vocabulary": 16384,
        "batch_tokens": 2048,
    },
}
"""One network, one vocabulary and one batch size for all contestants of a job; no dropout."""
STEPS_PER_TURN = {"causal": 1, "masked": 1, "seq2seq": 2}
WARM_UP = {
    "causal": 3,
    "masked": 3,
    "seq2seq": 12,
}  # steps; rows of new lengths are still compiled in the last

OURS, PEERS = sys.executable, "PEERS_PYTHON"
CONTESTANTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "nalanda": ("train_nalanda.py", OURS, ("causal", "masked", "seq2seq")),
    "nalanda-fp32": ("train_nalanda.py", OURS, ("causal", "masked", "seq2seq")),
    "hf-default": ("train_hf.py", PEERS, ("causal", "masked", "seq2seq")),
    "hf-tuned": ("train_hf.py", PEERS, ("causal", "masked", "seq2seq")),
    "hf-bf16": ("train_hf.py", PEERS, ("causal", "masked", "seq2seq")),
    "nanogpt-default": ("train_nanogpt.py", PEERS, ("causal",)),
    "nanogpt-tuned": ("train_nanogpt.py", PEERS, ("causal",)),
    "litgpt-default": ("train_litgpt.py", PEERS, ("causal",)),
    "litgpt-tuned": ("train_litgpt.py", PEERS, ("causal",)),
    "joeynmt-default": ("train_joeynmt.py", PEERS, ("seq2seq",)),
    "joeynmt-tuned": ("train_joeynmt.py", PEERS, ("seq2seq",)),
}
"""Name -> file, interpreter, the jobs that it can do."""


def value(text: str) -> Any:
    """A setting of the command line: JSON where it is, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def plan_of(contestant: str, job: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a contestant is told, beside the turns."""
    variant, *changes = contestant.split("+")
    return {
        "variant": variant,
        "overrides": {k: value(v) for k, _, v in (change.partition("=") for change in changes)},
        "job": {"kind": job, **JOBS[job]},
        "folder": str(folder),
        "data": str(options.work / "data"),
        "threads": options.threads,
        "steps": 100_000,
        "every": options.every,
        "evaluation_batches": 8,
        "log_every": 10,
        "lr": 5e-4,
        "warmup": 20,
        "pair_tokens": JOBS[job]["batch_tokens"],
    }


def environment(threads: int, cache: Path) -> dict[str, str]:
    """The environment of every contestant: threads, and a place for what torch.compile makes."""
    values = {name: v for name, v in os.environ.items() if not name.startswith(("OMP_", "MKL_", "KMP_"))}
    values |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    ours = [str(HERE.parent)]  # the checkout that this file is in, whatever is installed
    return values | {
        "PYTHONPATH": os.pathsep.join(ours),
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


class Race:
    """One job: its contestants, started one after the other, then round after round."""

    def __init__(self, job: str, names: list[str], options: argparse.Namespace) -> None:
        self.job, self.options = job, options
        self.each = options.steps_per_turn or STEPS_PER_TURN[job]
        self.running: list[tuple[Contestant, Record]] = []
        self.names = [*names, "matmul-peak"]
        self.failures: dict[str, str] = {}
        self.others = 0.0

    def start(self, name: str, attempt: str) -> Contestant:
        """A contestant's process."""
        place = self.options.work / self.job / name.replace("+", "_").replace("=", "-")
        folder = place / attempt
        shutil.rmtree(folder, ignore_errors=True)
        if name == "matmul-peak":
            script, python = "matmul_peak.py", OURS
        else:
            script, python, _ = CONTESTANTS[name.split("+")[0]]
        if python == PEERS:
            python = os.environ[PEERS]
        cache = place / "compiled"
        if attempt == "cold":
            shutil.rmtree(cache, ignore_errors=True)
        plan = plan_of(name, self.job, self.options, folder)
        command = [python, str(HERE / "engine_peers" / script)]
        return Contestant(name, command, plan, environment(self.options.threads, cache))

    def run(self) -> list[Record]:
        """All rounds; a contestant that fails is left out and named in `failures`."""
        try:
            for name in self.names:
                try:
                    self.enter(name)
                except ContestantError as error:
                    self.fail(name, error)
            machine = Machine()
            for turn in range(self.options.rounds):
                for place in order(len(self.running), turn):
                    self.turn(*self.running[place], mark=turn == 0)
                if turn % 10 == 9 or turn + 1 == self.options.rounds:
                    say(f"{self.job}: round {turn + 1} of {self.options.rounds}")
            self.others = machine.others(sum(record.cpu_seconds for _, record in self.running))
            return [record for contestant, record in self.running if self.ended(contestant, record)]
        finally:
            for contestant, _ in self.running:
                contestant.__exit__(None, None, None)

    def turn(self, contestant: Contestant, record: Record, mark: bool) -> None:
        """One turn of one contestant that has not failed."""
        if contestant.name in self.failures:
            return
        try:
            before = contestant.cpu_seconds()
            record.turns.append(contestant.turn(self.each, mark=mark))
            record.cpu_seconds += contestant.cpu_seconds() - before
        except ContestantError as error:
            self.fail(contestant.name, error)

    def ended(self, contestant: Contestant, record: Record) -> bool:
        """Takes a contestant's report; whether there is one."""
        try:
            record.facts = contestant.end() if contestant.name not in self.failures else {}
        except ContestantError as error:
            self.fail(contestant.name, error)
        return bool(record.facts)

    def fail(self, name: str, error: ContestantError) -> None:
        """A contestant is out."""
        self.failures[name] = str(error)
        say(f"{self.job}: {error}")

    def enter(self, name: str) -> None:
        """Starts a contestant, once with an empty compile cache and once more with what that left; warms it up."""
        record = Record(name, self.each, warm_up=self.options.warm_up or WARM_UP[self.job])
        if name != "matmul-peak" and not self.options.keep_cache:
            with self.start(name, "cold") as contestant:
                contestant.imported()
                record.cold_seconds = contestant.turn(1)
                contestant.turn(record.warm_up - 1)
        contestant = self.start(name, "race")
        try:
            record.import_seconds = contestant.imported()
            record.first_seconds = contestant.turn(1)
            rest = contestant.turn(record.warm_up - 1)
        except BaseException:
            contestant.__exit__(None, None, None)
            raise
        self.running.append((contestant, record))
        cold = "" if record.cold_seconds is None else f" ({record.cold_seconds:.1f} s cold)"
        say(f"{self.job}: {name}: first step {record.first_seconds:.1f} s{cold}, then {rest:.1f} s")


def say(line: str) -> None:
    """Progress, to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> None:
    """Runs the races that were asked for and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", default="causal,masked,seq2seq")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations, and checkpoints")
    parser.add_argument("--steps-per-turn", type=int)
    parser.add_argument("--warm-up", type=int, help="steps before the first round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep-cache", action="store_true", help="no cold start: use what is compiled")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "engine")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/DATE_engine.md")
    options = parser.parse_args()
    options.work = options.work.resolve()
    prepare(Path(os.environ["NALANDA_DATA"]), options.work / "data", JOBS["causal"]["vocabulary"])
    races = []
    for job in options.jobs.split(","):
        names = [n for n in options.contestants.split(",") if job in CONTESTANTS[n.split("+")[0]][2]]
        race = Race(job, names, options)
        races.append(Result(job, race.run(), race.failures, race.others))
    today = datetime.datetime.now(tz=datetime.UTC).date()
    output = options.output or HERE / "results" / f"{today}_engine.md"
    text = page(races, options, today)
    output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
