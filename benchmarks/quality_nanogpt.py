"""nanoGPT as a contestant of benchmarks/quality.py: its own model.py, from the folder in NANOGPT, with its own
recipe.

    NANOGPT=~/nanoGPT python benchmarks/quality_nanogpt.py '{"out": ..., "arrays": ..., "seconds": 1200, ...}'

The recipe is that of its train.py: random windows of the stream of documents, AdamW on everything with decay on
matrices, 0.1 and betas from config/train_shakespeare_char.py, cosine down to a tenth, clipping at 1. What its
train.py does for speed on GPUs only is done here on CPUs as well: bf16 autocast, torch.compile, fused AdamW.
The schedule goes by the clock instead of by iterations, so that it ends when time does. Learning rate and batch
are tuned (SETTINGS).
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import quality_common as common
import torch
from torch import Tensor

SETTINGS: dict[str, Any] = {
    "n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "dropout": 0.0, "bias": False,
    "rows": 16, "lr": 1e-3, "warmup": 0.02, "final": 0.1, "betas": [0.9, 0.99], "weight_decay": 0.1, "clip": 1.0,
    "bf16": True, "compile": True, "fused": True,
}  # fmt: skip


def load_model_file(folder: Path) -> Any:
    """The module model.py of a nanoGPT checkout."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def batches(stream: np.ndarray, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Random windows and what follows each place, as train.py's get_batch."""
    starts = torch.randint(len(stream) - width, (rows,))
    x = torch.stack([torch.from_numpy(stream[i : i + width].astype(np.int64)) for i in starts.tolist()])
    y = torch.stack(
        [torch.from_numpy(stream[i + 1 : i + 1 + width].astype(np.int64)) for i in starts.tolist()]
    )
    return x.to(common.device()), y.to(common.device())


def run(spec: dict[str, Any]) -> None:
    """Trains for `seconds` of own time and writes the curve of bits per byte to `out`."""
    settings, arrays = SETTINGS | spec["settings"], Path(spec["arrays"])
    tokens = json.loads((arrays / "tokens.json").read_text())
    stream = np.memmap(arrays / "train.bin", dtype=np.uint16, mode="r")
    held = common.HeldOut(arrays / "causal.npz")
    curve = common.Curve(
        Path(spec["out"]), spec["every"], contestant="nanoGPT", seed=spec["seed"], settings=settings
    )
    clock = common.Clock(spec["seconds"])
    torch.manual_seed(spec["seed"])
    torch.set_flush_denormal(True)
    file = load_model_file(Path(os.environ["NANOGPT"]))
    names = ("n_layer", "n_head", "n_embd", "block_size", "dropout", "bias")
    config = file.GPTConfig(**{name: settings[name] for name in names}, vocab_size=tokens["vocabulary"])
    model = file.GPT(config).to(common.device())
    optimizer = model.configure_optimizers(
        settings["weight_decay"], settings["lr"], tuple(settings["betas"]), common.device().type
    )
    for group in optimizer.param_groups:
        group["fused"] = settings["fused"]
    stepped = torch.compile(model) if settings["compile"] else model

    def nll(part: dict[str, Tensor]) -> Tensor:
        ids = torch.where(part["ids"] == tokens["bos"], tokens["eos"], part["ids"])  # its separator
        with common.autocast(settings["bf16"]):
            logits, _ = model(ids.to(common.device()), part["targets"].to(common.device()))
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), part["targets"].flatten().to(common.device()), reduction="none"
        ).view_as(part["targets"])

    def point() -> None:
        with clock.paused():
            model.eval()
            curve.add(clock.seconds, held.bits_per_byte(nll))
            model.train()

    steps = 0
    while not clock.over:
        common.set_rate(
            optimizer,
            settings["lr"] * common.cosine(clock.progress, settings["warmup"], settings["final"]),
        )
        x, y = batches(stream, settings["rows"], settings["block_size"])
        with common.autocast(settings["bf16"]):
            _, loss = stepped(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        if curve.due(clock.seconds) and not clock.over:
            point()
    point()
    curve.finish(
        steps=steps,
        tokens=steps * settings["rows"] * settings["block_size"],
        parameters=sum(p.numel() for p in model.parameters()),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
