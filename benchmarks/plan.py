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

SECONDS, STEPS = 15.0, 14
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


def _nalanda(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--run", *words],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"nalanda {' '.join(words)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _with_clock() -> None:
    """Adds the process's CPU seconds to every row of metrics.jsonl."""
    log = Run.log

    def timed(self: Run, row: dict[str, Any]) -> None:
        log(self, {**row, "cpu": time.process_time()})

    Run.log = timed  # type: ignore[method-assign]


def compare(name: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Plans the case, runs it, and gives both."""
    io.write_text(folder / "case.yaml", dump_yaml(_recipe(case, folder)))
    runs = folder / f"runs-{time.time_ns()}"
    words = ("plan", "case.yaml", "--hardware", "here", "--seconds", str(SECONDS), "--json")
    stage = json.loads(_nalanda(folder, *words))["stages"][0]
    _nalanda(folder, "train", "case.yaml", "--runs", str(runs))
    result = io.read_json(runs / "measured" / "result.json")
    rows = [json.loads(line) for line in (runs / "measured" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "seconds" in row]
    steps = len(rows) - WARM
    measured = stage["calibration"]
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
        f"programs ran on the same cores. Each run of {STEPS} steps follows its plan ({SECONDS:.0f} s of measuring). "
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
