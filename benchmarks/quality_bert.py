"""BERT as a contestant of benchmarks/quality.py: transformers' BertForMaskedLM with BERT's own recipe.

    $PEERS_PYTHON benchmarks/quality_bert.py '{"out": ..., "arrays": ..., "seconds": 1200, ...}'

Devlin et al. 2019: post-norm, learned positions, GELU, dropout 0.1; 15 % of tokens chosen anew each time,
80/10/10; AdamW with betas 0.9 and 0.999, eps 1e-6 and decay 0.01 on all but biases and norms, clipping at 1,
linear schedule with warm-up. For speed: bf16 autocast, torch.compile, fused AdamW, and the head at chosen
places only (sparse_prediction's way). Learning rate and batch are tuned, and dropout may be (SETTINGS).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import quality_common as common
import torch
from torch import Tensor

SETTINGS: dict[str, Any] = {
    "layers": 6, "hidden": 384, "heads": 6, "dropout": 0.1,
    "rows": 32, "lr": 1e-3, "warmup": 0.05, "weight_decay": 0.01, "clip": 1.0, "rate": 0.15,
    "bf16": True, "compile": True, "fused": True,
}  # fmt: skip


def build(settings: dict[str, Any], tokens: dict[str, int], width: int) -> torch.nn.Module:
    """A model with random weights."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=tokens["vocabulary"],
        hidden_size=settings["hidden"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        intermediate_size=4 * settings["hidden"],
        hidden_dropout_prob=settings["dropout"],
        attention_probs_dropout_prob=settings["dropout"],
        max_position_embeddings=width,
        pad_token_id=tokens["pad"],
    )
    return BertForMaskedLM(config).to(common.device())


def optimizer_of(model: torch.nn.Module, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """BERT's: no decay of biases and norms."""
    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    decayed = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    groups = [
        {"params": decayed, "weight_decay": settings["weight_decay"]},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=(0.9, 0.999), eps=1e-6, fused=settings["fused"])


def mask(ids: Tensor, tokens: dict[str, int], rate: float, count: int) -> tuple[Tensor, Tensor]:
    """Masked ids, and the flat places of exactly `count` chosen tokens, so that every step has one shape."""
    special = (ids == tokens["bos"]) | (ids == tokens["eos"]) | (ids == tokens["pad"])
    draw = torch.rand(ids.shape).masked_fill(special, 2.0)
    places = draw.flatten().topk(count, largest=False).indices
    fate = torch.rand(count)
    masked = ids.flatten().clone()
    masked[places[fate < 0.8]] = tokens["mask"]
    replaced = places[(fate >= 0.8) & (fate < 0.9)]
    masked[replaced] = torch.randint(5, tokens["vocabulary"], (len(replaced),))
    return masked.view_as(ids), places


class Sparse(torch.nn.Module):
    """The loss of the chosen places alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, seen: Tensor, places: Tensor, targets: Tensor) -> Tensor:
        """-log p of each target."""
        hidden = self.model.bert(ids, attention_mask=seen).last_hidden_state
        logits = self.model.cls(hidden.flatten(0, 1).index_select(0, places))
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def run(spec: dict[str, Any]) -> None:
    """Trains for `seconds` of own time and writes the curve of held-out loss at masked places to `out`."""
    settings, arrays = SETTINGS | spec["settings"], Path(spec["arrays"])
    tokens = json.loads((arrays / "tokens.json").read_text())
    rows = np.load(arrays / "rows.npy", mmap_mode="r")
    held = common.HeldOut(arrays / "masked.npz")
    curve = common.Curve(
        Path(spec["out"]), spec["every"], contestant="BERT", seed=spec["seed"], settings=settings
    )
    clock = common.Clock(spec["seconds"])
    torch.manual_seed(spec["seed"])
    torch.set_flush_denormal(True)
    width = rows.shape[1]
    model = Sparse(build(settings, tokens, width))
    optimizer = optimizer_of(model, settings)
    stepped = torch.compile(model) if settings["compile"] else model
    count = int(settings["rows"] * (width - 2) * settings["rate"])

    def nll(part: dict[str, Tensor]) -> Tensor:
        places = part["weight"].flatten().nonzero().squeeze(1)
        out = torch.zeros(part["ids"].numel())
        with common.autocast(settings["bf16"]):
            seen = (part["segments"] > 0).long()
            out[places] = model(part["ids"], seen, places, part["targets"].flatten()[places])
        return out.view_as(part["ids"])

    def point() -> None:
        with clock.paused():
            model.eval()
            total, number = held.nats(nll, rows=settings["rows"])
            curve.add(clock.seconds, total / number)
            model.train()

    steps, order = 0, torch.randperm(len(rows))
    model.train()
    while not clock.over:
        common.set_rate(optimizer, settings["lr"] * common.linear(clock.progress, settings["warmup"]))
        at = steps * settings["rows"] % (len(rows) - settings["rows"])
        taken = np.sort(order[at : at + settings["rows"]].numpy())
        ids = torch.from_numpy(rows[taken].astype(np.int64))
        masked, places = mask(ids, tokens, settings["rate"], count)
        seen = (ids != tokens["pad"]).long()
        with common.autocast(settings["bf16"]):
            loss = stepped(masked, seen, places, ids.flatten()[places]).mean()
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
        tokens=steps * settings["rows"] * width,
        parameters=sum(p.numel() for p in model.parameters()),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
