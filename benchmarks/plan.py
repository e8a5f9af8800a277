"""`nalanda plan --hardware here` against real runs: each is planned, run right after, and compared.

    OMP_NUM_THREADS=1 python benchmarks/plan.py [CASE ...]   # all ten: up to 40 minutes; writes results/

The corpus comes from packages (Hindi catalogs of pycountry and django). A run is `nalanda train` in a process of its
own. Compared are seconds of a step by the clock, CPU seconds of a step, which other programs on the machine disturb
less, both without the first steps, and the peak memory of the
process.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nalanda.base import io, machine
from nalanda.base.errors import UserError
from nalanda.base.run import Run
from nalanda.cli import main
from nalanda.config import dump_yaml

SECONDS, STEPS = 25.0, 16
WARM = 3
_LLAMA = {"norm": "rms", "feedforward": "glu", "activation": "silu"}
_ADAMW, _MUON = {"kind": "adamw", "lr": 1e-3}, {"kind": "muon", "lr": 1e-3}


def _causal(length: int, tokens: int, micro: int | None = None) -> dict[str, Any]:
    return {"kind": "causal", "max_length": length, "batch_tokens": tokens, "micro_batch_tokens": micro}


CASES: dict[str, dict[str, Any]] = {
    "decoder 4x128, 128 places, bf16, AdamW": {
        "data": _causal(128, 4096),
        "model": {"kind": "decoder", "layers": 4, "hidden": 128, "heads": 4, **_LLAMA},
        "precision": "bf16",
        "optimizer": _ADAMW,
    },
    "decoder 6x256, 512 places, fp32, AdamW, two micro-batches": {
        "data": _causal(512, 2048, 1024),
        "model": {"kind": "decoder", "layers": 6, "hidden": 256, "heads": 4, "kv_heads": 2, **_LLAMA},
        "precision": "fp32",
        "optimizer": _ADAMW,
    },
    "decoder 4x256, 1024 places, bf16, Muon": {
        "data": _causal(1024, 4096),
        "model": {"kind": "decoder", "layers": 4, "hidden": 256, "heads": 4, "norm": "rms"},
        "precision": "bf16",
        "optimizer": _MUON,
    },
    "GPT-2 family 4x192, dropout, 256 places, fp32, AdamW, average": {
        "data": _causal(256, 2048),
        "model": {"family": "gpt2", "config": {"n_layer": 4, "n_embd": 192, "n_head": 6, "n_positions": 256}},
        "precision": "fp32",
        "optimizer": _ADAMW,
        "ema": {"decay": 0.999},
    },
    "encoder 4x192, masked, dropout, fp32, AdamW": {
        "data": {"kind": "masked", "max_length": 64, "batch_tokens": 2048},
        "model": {"kind": "encoder", "layers": 4, "hidden": 192, "heads": 4, "dropout": 0.1},
        "precision": "fp32",
        "optimizer": _ADAMW,
    },
    "BERT family 6x256, masked, bf16, Muon": {
        "data": {"kind": "masked", "max_length": 128, "batch_tokens": 4096},
        "model": {
            "family": "bert",
            "config": {
                "num_hidden_layers": 6,
                "hidden_size": 256,
                "num_attention_heads": 4,
                "intermediate_size": 1024,
                "max_position_embeddings": 128,
            },
        },
        "precision": "bf16",
        "optimizer": _MUON,
    },
    "encoder-decoder 3+3x192, pairs, fp32, Muon": {
        "data": {"kind": "pairs", "max_length": 96, "batch_tokens": 2048},
        "model": {"kind": "encoder_decoder", "layers": 3, "hidden": 192, "heads": 4, "norm": "rms"},
        "precision": "fp32",
        "optimizer": _MUON,
    },
    "encoder-decoder 2+2x160, denoising, relative, bf16, AdamW": {
        "data": {"kind": "denoise", "max_length": 96, "batch_tokens": 4096},
        "model": {"kind": "encoder_decoder", "layers": 2, "hidden": 160, "heads": 4, "position": "relative"},
        "precision": "bf16",
        "optimizer": _ADAMW,
    },
    "mixture of 8 experts, 4x128, 128 places, fp32, AdamW": {
        "data": _causal(128, 2048),
        "model": {
            "kind": "decoder", "layers": 4, "hidden": 128, "heads": 4, **_LLAMA,
            "moe": {"experts": 8, "top_k": 2, "inner": 128, "balance_bias": True},
        },
        "objective": {"kind": "experts", "objective": {"kind": "tokens"}, "load_balance": 0.001, "bias_rate": 0.001},
        "precision": "fp32",
        "optimizer": _ADAMW,
    },
    "decoder 12x384, 256 places, bf16, AdamW, two micro-batches": {
        "data": _causal(256, 4096, 2048),
        "model": {"kind": "decoder", "layers": 12, "hidden": 384, "heads": 6, **_LLAMA},
        "precision": "bf16",
        "optimizer": _ADAMW,
    },
}  # fmt: skip


def _recipe(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    data = {
        **case["data"],
        "corpus": str(folder / "base" / "corpus"),
        "tokenizer": str(folder / "base" / "tokenizer"),
    }
    return {
        "name": "measured",
        "verb": "train",
        **case,
        "data": data,
        "budget": {"steps": STEPS},
        "schedule": {"warmup": 0.0},
        "evaluation": {"every": 1000, "batches": 1},
        "checkpoint": {"every": 1000},
        "log_every": 1,
    }


def _base(folder: Path) -> None:
    """The corpus and the tokenizer that all cases share."""
    recipe = {
        "name": "base",
        "stages": {
            "corpus": {
                "verb": "corpus",
                "sources": [
                    {"kind": "catalogs", "package": name, "languages": ["hin_Deva"]}
                    for name in ("pycountry", "django")
                ],
            },
            "tokenizer": {
                "verb": "tokenizer",
                "corpus": "${corpus}",
                "vocabulary": 2000,
                "languages": ["eng_Latn", "hin_Deva"],
            },
        },
    }
    io.write_text(folder / "base.yaml", dump_yaml(recipe))
    _nalanda(folder, "run", "base.yaml", "--runs", str(folder))


def _start(folder: Path, *words: str, turns: str = "") -> subprocess.Popen[str]:
    """`nalanda WORDS`; in turns with others where it has a name for that."""
    environment = dict(os.environ)
    if turns:
        paths = [str(folder / "site"), environment.get("PYTHONPATH", "")]
        environment |= {
            "PLAN_TURNS": str(folder),
            "PLAN_ME": turns,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
    command = [sys.executable, str(Path(__file__).resolve()), "--run", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment)


def _ended(process: subprocess.Popen[str]) -> str:
    out, told = process.communicate()
    if process.returncode:
        raise UserError(f"{process.args}: {told.strip()[-500:]}")
    return out


def _nalanda(folder: Path, *words: str) -> str:
    return _ended(_start(folder, *words))


_SITE = """
import os, sys, time
from pathlib import Path

folder, me = Path(os.environ["PLAN_TURNS"]), os.environ["PLAN_ME"]
other = {"run": "plan", "plan": "run"}[me]
first = me == "run" or any("calibrate_steps" in word for word in sys.orig_argv)


def active():
    try:
        return Path("/proc", (folder / f"active-{other}").read_text()).exists()
    except OSError:
        return False


if first:
    from nalanda.train.loop import Trainer

    show = Trainer._show

    def in_turns(self, bar):
        show(self, bar)
        global first
        mine = folder / f"active-{me}"
        if first:  # wait for the other's first step
            first = False
            mine.write_text(str(os.getpid()))
            until = time.monotonic() + 180
            while not (folder / f"active-{other}").exists() and time.monotonic() < until:
                time.sleep(0.01)
        (folder / "turn").write_text(other)
        while active() and (folder / "turn").read_text() == other:
            time.sleep(0.01)

    Trainer._show = in_turns
"""
"""What a process in turns runs when it starts: after each step it waits until the other has made one."""


def _with_clock() -> None:
    """Adds the process's CPU seconds to every row of metrics.jsonl."""
    log = Run.log

    def timed(self: Run, row: dict[str, Any]) -> None:
        log(self, {**row, "cpu": time.process_time()})

    Run.log = timed  # type: ignore[method-assign]


def compare(name: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Plans the case, runs it, and gives both."""
    io.write_text(folder / "case.yaml", dump_yaml(_recipe(case, folder)))
    runs = folder / "runs"
    for left in (*folder.glob("active-*"), *folder.glob("turn")):
        left.unlink()
    shutil.rmtree(runs, ignore_errors=True)
    io.write_text(folder / "site" / "sitecustomize.py", _SITE)
    words = ("plan", "case.yaml", "--hardware", "here", "--seconds", str(SECONDS), "--json")
    planning = _start(folder, *words, turns="plan")
    running = _start(folder, "train", "case.yaml", "--runs", str(runs), turns="run")
    stage = json.loads(_ended(planning))["stages"][0]
    _ended(running)
    result = io.read_json(runs / "measured" / "result.json")
    rows = [json.loads(line) for line in (runs / "measured" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "seconds" in row]
    measured = stage["calibration"]
    if "itself" in measured["how"]:  # the steps that were made in turn
        rows = rows[: WARM + int(measured["how"].split()[0])]
    steps = len(rows) - WARM
    return {
        "name": name,
        "how": measured["how"],
        "parameters": stage["parameters"],
        "share": measured["share"],
        "clock": (measured["step"], (rows[-1]["seconds"] - rows[WARM - 1]["seconds"]) / steps),
        "cpu": (measured["cpu"], (rows[-1]["cpu"] - rows[WARM - 1]["cpu"]) / steps),
        "memory": (stage["memory"]["peak"], float(result["peak_memory_bytes"])),
    }


def _error(pair: tuple[float, float]) -> float:
    return pair[0] / pair[1] - 1


def report(found: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "# Plans against real runs",
        "",
        f"`benchmarks/plan.py` on {machine.environment()['cpu']}, {machine.cores()} cores, one thread, while other "
        f"programs ran on the same cores. A run of {STEPS} steps and its plan ({SECONDS:.0f} s) take turns. "
        f"A step without the first {WARM}; predicted / measured (error). Targets: 15 % on time, 10 % on memory.",
        "",
        "| case | parameters | seconds of a step | CPU seconds of a step | peak memory, MB | planned from |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        clock, cpu, memory = row["clock"], row["cpu"], row["memory"]
        cells = [
            row["name"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{clock[0]:.3f} / {clock[1]:.3f} ({_error(clock):+.0%})",
            f"{cpu[0]:.3f} / {cpu[1]:.3f} ({_error(cpu):+.0%})",
            f"{memory[0] / 1e6:.0f} / {memory[1] / 1e6:.0f} ({_error(memory):+.0%})",
            f"{row['how']}; got {row['share']:.0%} of its core",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for what, key, limit in (
        ("the clock", "clock", 0.15),
        ("CPU seconds", "cpu", 0.15),
        ("memory", "memory", 0.10),
    ):
        errors = sorted(abs(_error(row[key])) for row in found)
        lines.append(
            f"- {what}: {sum(e <= limit for e in errors)} of {len(errors)} within {limit:.0%}; median error "
            f"{errors[len(errors) // 2]:.0%}, largest {errors[-1]:.0%}"
        )
    return "\n".join(lines) + "\n"


def _all(words: list[str]) -> None:
    chosen = {name: case for name, case in CASES.items() if not words or any(word in name for word in words)}
    found: list[dict[str, Any]] = []
    out = Path(__file__).resolve().parent / "results" / f"{datetime.date.today().isoformat()}_plan.md"
    with tempfile.TemporaryDirectory(prefix="nalanda-plans-") as place:
        folder = Path(place)
        _base(folder)
        for name, case in chosen.items():
            row = compare(name, case, folder)
            found.append(row)
            errors = {key: f"{_error(row[key]):+.1%}" for key in ("clock", "cpu", "memory")}
            sys.stderr.write(f"{name}: {errors} {row}\n")
            if not words:
                io.write_text(out, report(found))
    sys.stdout.write(report(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        _with_clock()
        main(sys.argv[2:])
    else:
        _all(sys.argv[1:])
