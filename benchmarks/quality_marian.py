"""Marian as a contestant of benchmarks/quality.py: transformers' MarianMTModel with Marian's own recipe.

    $PEERS_PYTHON benchmarks/quality_marian.py '{"out": ..., "arrays": ..., "seconds": 1200, ...}'

Junczys-Dowmunt et al. 2018, after Vaswani et al. 2017: post-norm, sinusoidal positions, shared embeddings,
dropout 0.1, label smoothing 0.1, Adam with betas 0.9 and 0.98 and eps 1e-9, inverse square root with warm-up,
batches by tokens from rows of like length. For speed: bf16 autocast, torch.compile for dynamic shapes, fused
Adam. Learning rate, warm-up and batch are tuned (SETTINGS). Scores are chrF++ of greedy translations, decoded
by its own `generate`.
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
    "layers": 4, "hidden": 256, "heads": 4, "inner": 1024, "dropout": 0.1, "activation": "relu",
    "batch_tokens": 4096, "lr": 1e-3, "warmup": 0.1, "smoothing": 0.1, "clip": 5.0, "max_length": 96,
    "bf16": True, "compile": True, "fused": True,
}  # fmt: skip


class Rows:
    """Training pairs in batches of like length, padded to a multiple of 8."""

    def __init__(self, path: Path, tokens: dict[str, int], settings: dict[str, Any]) -> None:
        with np.load(path) as values:
            both = {
                n: np.split(values[n].astype(np.int64), values[f"{n}_lengths"].cumsum()[:-1])
                for n in ("source", "target")
            }
        limit = settings["max_length"]
        self.pairs = [
            (np.append(a[: limit - 1], tokens["eos"]), np.append(b[: limit - 1], tokens["eos"]))
            for a, b in zip(both["source"], both["target"])
        ]
        self.tokens, self.budget = tokens, settings["batch_tokens"]

    def epoch(self) -> list[list[int]]:
        """Batches of row numbers, shuffled."""
        lengths = np.array([[len(a), len(b)] for a, b in self.pairs])
        order = np.random.permutation(len(lengths))
        order = order[np.lexsort((lengths[order, 1], lengths[order, 0]))]
        batches: list[list[int]] = [[]]
        widest = np.zeros(2, dtype=int)
        for row in order.tolist():
            widest = np.maximum(widest, -(-lengths[row] // 8) * 8)
            if widest.sum() * (len(batches[-1]) + 1) > self.budget and batches[-1]:
                batches.append([])
                widest = -(-lengths[row] // 8) * 8
            batches[-1].append(row)
        np.random.shuffle(batches)  # type: ignore[arg-type]
        return batches

    def batch(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Padded source and target."""
        return tuple(_pad([self.pairs[row][side] for row in rows], self.tokens["pad"]) for side in (0, 1))  # type: ignore[return-value]


def _pad(rows: list[np.ndarray], fill: int) -> Tensor:
    out = np.full((len(rows), -(-max(map(len, rows)) // 8) * 8), fill, dtype=np.int64)
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return torch.from_numpy(out)


def build(settings: dict[str, Any], tokens: dict[str, int]) -> Any:
    """A model with random weights."""
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=tokens["vocabulary"], d_model=settings["hidden"],
        encoder_layers=settings["layers"], decoder_layers=settings["layers"],
        encoder_attention_heads=settings["heads"], decoder_attention_heads=settings["heads"],
        encoder_ffn_dim=settings["inner"], decoder_ffn_dim=settings["inner"],
        dropout=settings["dropout"], activation_function=settings["activation"], scale_embedding=True,
        pad_token_id=tokens["pad"], eos_token_id=tokens["eos"], decoder_start_token_id=tokens["pad"],
        bos_token_id=tokens["bos"], forced_eos_token_id=None, max_position_embeddings=256,
    )  # fmt: skip
    return MarianMTModel(config)


def score(model: Any, held: dict[str, Any], tokens: dict[str, int], tokenizer: Path) -> float:
    """chrF++ of greedy translations."""
    from sacrebleu.metrics import CHRF
    from tokenizers import Tokenizer

    decoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    order = sorted(range(len(held["ids"])), key=lambda i: len(held["ids"][i]))
    found = [""] * len(order)
    for at in range(0, len(order), 50):
        part = order[at : at + 50]
        ids = _pad([np.array([*held["ids"][i][:255], tokens["eos"]]) for i in part], tokens["pad"])
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=(ids != tokens["pad"]).long(),
                num_beams=1,
                do_sample=False,
                max_new_tokens=96,
            )
        for i, row in zip(part, out.tolist()):
            end = row.index(tokens["eos"]) if tokens["eos"] in row else len(row)
            found[i] = decoder.decode([t for t in row[1:end] if t != tokens["pad"]])
    return float(CHRF(word_order=2).corpus_score(found, [held["target"]]).score)


def run(spec: dict[str, Any]) -> None:
    """Trains for `seconds` of own time and writes the curve of chrF++ to `out`."""
    settings, arrays = SETTINGS | spec["settings"], Path(spec["arrays"])
    tokens = json.loads((arrays / "tokens.json").read_text())
    held = json.loads((arrays / "held.json").read_text())
    data = Rows(arrays / "train.npz", tokens, settings)
    curve = common.Curve(
        Path(spec["out"]), spec["every"], contestant="Marian", seed=spec["seed"], settings=settings
    )
    clock = common.Clock(spec["seconds"])
    torch.manual_seed(spec["seed"])
    np.random.seed(spec["seed"])
    torch.set_flush_denormal(True)
    model = build(settings, tokens)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=settings["lr"], betas=(0.9, 0.98), eps=1e-9, fused=settings["fused"]
    )
    stepped = torch.compile(model, dynamic=True) if settings["compile"] else model

    def point() -> None:
        with clock.paused():
            model.eval()
            curve.add(clock.seconds, score(model, held, tokens, Path(spec["tokenizer"])))
            model.train()

    steps, seen, waiting = 0, 0, data.epoch()
    model.train()
    while not clock.over:
        common.set_rate(optimizer, settings["lr"] * common.inverse_sqrt(clock.progress, settings["warmup"]))
        waiting = waiting or data.epoch()
        source, target = data.batch(waiting.pop())
        before = torch.nn.functional.pad(target[:, :-1], (1, 0), value=tokens["pad"])
        with common.autocast(settings["bf16"]):
            logits = stepped(
                input_ids=source, attention_mask=(source != tokens["pad"]).long(), decoder_input_ids=before
            ).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            target.flatten(),
            ignore_index=tokens["pad"],
            label_smoothing=settings["smoothing"],
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        seen += source.numel() + target.numel()
        if curve.due(clock.seconds) and not clock.over:
            point()
    point()
    curve.finish(
        steps=steps,
        tokens=seen,
        parameters=sum(p.numel() for p in model.parameters()),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
