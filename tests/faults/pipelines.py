"""Small real pipelines: corpus, tokenizer, training with dropout, export, for each kind of model; what they made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from faults.server import digest, rows

from nalanda.stages import recipe, train
from nalanda.stages.stage import Context
from nalanda.stages.starting import data_tokenizer

_EXPERTS = {"experts": 4, "top_k": 2, "inner": 16, "balance_bias": True}
KINDS: dict[str, dict[str, Any]] = {
    "encoder": {"data": {"kind": "masked"}, "model": {"kind": "encoder"}},
    "decoder": {"data": {"kind": "causal"}, "model": {"kind": "decoder"}, "ema": {"decay": 0.9}},
    "encoder_decoder": {
        "data": {"kind": "pairs"},
        "model": {"kind": "encoder_decoder"},
        "optimizer": {"kind": "muon"},
    },
    "experts": {
        "data": {"kind": "causal"},
        "model": {"kind": "decoder", "feedforward": "glu", "activation": "silu", "moe": _EXPERTS},
        "objective": {
            "kind": "experts",
            "objective": {"kind": "tokens"},
            "load_balance": 0.01,
            "bias_rate": 0.01,
        },
        "evaluation": {"every": 4, "monitor": "nll"},
    },
}
STEPS, EVERY = 12, 3


def write_recipe(place: Path, kind: str) -> Path:
    """A recipe named `run` in `place`, with its data beside `place`."""
    place.mkdir(parents=True, exist_ok=True)
    lines = [
        {"text": f"The word{i % 17} is here, number {i}.", "target": f"यह शब्द {i % 17} है, संख्या {i}।"}
        for i in range(160)
    ]
    data = place.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not json\n")
    spec = KINDS[kind]
    shared = {"corpus": "${corpus}", "tokenizer": "${tokenizer}", "max_length": 48, "batch_tokens": 512}
    shape = {"layers": 1, "hidden": 16, "heads": 2, "dropout": 0.1}
    model = {
        "verb": "train",
        "budget": {"steps": STEPS},
        "schedule": {"warmup": 2},
        "checkpoint": {"every": EVERY, "keep": 2},
        "log_every": 1,
        "compile": "off",
        "threads": 1,
        "evaluation": {"every": 4},
        **spec,
        "data": {**shared, **spec["data"]},
        "model": {**shape, **spec["model"]},
    }
    source = {"kind": "jsonl", "path": str(data), "target": "target", "language": "eng_Latn"}
    split = {"modulo": 8, "test": [1], "dev": [2], "near": 0.0}
    corpus = {
        "verb": "corpus",
        "sources": [{**source, "target_language": "hin_Deva"}],
        "split": split,
        "max_quarantined": 0.5,
    }
    tokenizer = {"verb": "tokenizer", "corpus": "${corpus}", "vocabulary": 330, "min_frequency": 1}
    tokenizer["languages"] = ["eng_Latn", "hin_Deva"]
    stages = {"corpus": corpus, "tokenizer": tokenizer, "model": model}
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "run", "output": "model", "stages": stages}, sort_keys=False))
    return path


def command(path: Path) -> list[str]:
    """The command line that runs it beside its recipe."""
    return ["run", str(path), "--runs", str(path.parent / "runs")]


def made(path: Path) -> dict[str, Any]:
    """All that a finished run must have made to the last bit, and the batches that would come next."""
    folder = path.parent / "runs" / "run"
    found: dict[str, Any] = {"rows": rows(folder / "model")}
    last = max((folder / "model" / "checkpoints").glob("step-*"))
    outputs = [
        f
        for stage in ("corpus", "tokenizer", "model/model")
        for f in (folder / stage).rglob("*")
        if f.is_file()
    ]
    skipped = {
        "README.md",
        "result.json",
        "environment.json",
        "manifest.json",
        "inputs.json",
        "config.yaml",
        "run.lock",
    }
    for file in [*outputs, *last.glob("*.safetensors")]:
        if file.name not in skipped:
            found[str(file.relative_to(folder))] = digest(file)
    state = json.loads((last / "state.json").read_text())
    found["hooks"], found["step"] = state["hooks"], state["step"]
    return found | {"batches": next_batches(path)}


def next_batches(path: Path) -> str:
    """The hash of the ids of the 100 batches after the last step."""
    config = recipe.load(path, [], path.parent / "runs").stages["model"].config
    source, _ = train.sources(config, path.parent / "look", data_tokenizer(config), Context())
    ids = hashlib.sha256()
    for step in range(STEPS, STEPS + 100):
        for batch in source.step(step):
            ids.update(batch["ids"].numpy().tobytes() + batch["sample_ids"].numpy().tobytes())
    return ids.hexdigest()
