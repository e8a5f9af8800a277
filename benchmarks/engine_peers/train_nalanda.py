"""Nalanda in the race: the training stage's own parts and its real loop, with all that it does between steps.

The networks are those of the families gpt2, bert and marian, the same as the Hugging Face models beside them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from turns import Turns

turns = Turns()
import torch  # noqa: E402
import torch._dynamo  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402

from nalanda.base.machine import environment  # noqa: E402
from nalanda.base.run import Run  # noqa: E402
from nalanda.config import parse  # noqa: E402
from nalanda.nn.model import Model  # noqa: E402
from nalanda.stages.stage import Context  # noqa: E402
from nalanda.stages.train import TrainStage, prepare  # noqa: E402
from nalanda.train.hooks import Evaluation, Hook, Moment  # noqa: E402
from nalanda.train.loop import fit  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "nalanda": {"precision": "auto", "compile": "auto"},
    "nalanda-fp32": {"precision": "fp32", "compile": "auto"},
}
"""What a contestant of ours changes in the recipe: any keys of a training stage, dotted ones in nested mappings."""


def network(job: dict[str, Any]) -> dict[str, Any]:
    """The recipe's `model`."""
    layers, hidden, heads, inner = job["layers"], job["hidden"], job["heads"], job["inner"]
    if job["kind"] == "causal":
        return {
            "family": "gpt2",
            "config": {
                "n_layer": layers,
                "n_embd": hidden,
                "n_head": heads,
                "n_inner": inner,
                "n_positions": job["length"],
                "embd_pdrop": 0.0,
                "resid_pdrop": 0.0,
                "attn_pdrop": 0.0,
            },
        }
    if job["kind"] == "masked":
        return {
            "family": "bert",
            "config": {
                "num_hidden_layers": layers,
                "hidden_size": hidden,
                "num_attention_heads": heads,
                "intermediate_size": inner,
                "max_position_embeddings": job["length"],
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
        }
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
             (("layers", layers), ("attention_heads", heads), ("ffn_dim", inner))}  # fmt: skip
    return {
        "family": "marian",
        "config": {
            **sides,
            "d_model": hidden,
            "activation_function": "swish",
            "scale_embedding": True,
            "max_position_embeddings": job["length"],
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
    }


def data(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe's `data`."""
    name = "pairs" if job["kind"] == "seq2seq" else "text"
    values: dict[str, Any] = {
        "kind": "pairs" if job["kind"] == "seq2seq" else job["kind"],
        "corpus": folder / name,
        "tokenizer": folder / f"{name}-tokenizer",
        "batch_tokens": job["batch_tokens"],
        "max_length": job["length"],
    }
    return values


def recipe(job: dict[str, Any], plan: dict[str, Any]) -> TrainStage:
    """The whole training stage of a contestant."""
    every = plan["every"]
    values: dict[str, Any] = {
        "budget": {"steps": plan["steps"]},
        "optimizer": {"kind": "adamw", "lr": plan["lr"]},
        "schedule": {"kind": "cosine", "warmup": plan["warmup"]},
        "log_every": plan["log_every"],
        "checkpoint": {"every": every, "keep": 2},
        "evaluation": {"every": every, "batches": plan["evaluation_batches"]},
        "model": network(job),
        "data": data(job, Path(plan["data"])),
        "threads": plan["threads"],
    }
    for key, value in (SETTINGS[plan["variant"]] | plan["overrides"]).items():
        *above, last = key.split(".")
        place = values
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    return parse(TrainStage, values, plan["name"])


class Gate(Hook):
    """Waits for the next turn after each step; the last hook, so that evaluation is inside turns."""

    name = "gate"

    def after_step(self, moment: Moment) -> None:
        """Hands the turn back when it is used up."""
        turns.step_done()


def useful_flops(model: Model, job: dict[str, Any], source: Any) -> float:
    """FLOPs of training for each token that is not padding; a masked model's head works where something is masked."""
    batches = [batch for step in range(20) for batch in source.step(step)]
    rows = sum(len(batch["ids"]) for batch in batches)
    length, other = (
        round(sum(int((batch[key] != 0).sum()) for batch in batches if key in batch) / rows)
        for key in ("segments", "source_segments")
    )
    total = model.flops_per_token(length, other)
    if job["kind"] == "masked":
        total -= 3 * 2.0 * job["hidden"] * job["vocabulary"] * (1 - job["masked"])
    return total


def tokens_of(source: Any, step: int) -> int:
    """Places of a step that are not padding, in both streams."""
    return sum(
        int((batch[key] != 0).sum())
        for batch in source.step(step)
        for key in ("segments", "source_segments")
        if key in batch
    )


def main() -> None:
    """Trains until the race is over."""
    losses: list[float] = []
    turns.imported()
    plan, job = turns.plan, turns.job
    torch.set_num_threads(plan["threads"])
    config = recipe(job, plan)
    run = Run(Path(plan["folder"]) / "run", config.to_dict(), {}, 1)
    run.path.mkdir(parents=True)
    stores = Path(plan["data"]) / "stores" / job["kind"]  # tokenized once, as the peers' ids are
    stores.mkdir(parents=True, exist_ok=True)
    (run.path / "store").symlink_to(stores)
    _, source, dev, model, _ = prepare(config, run.path, Context())
    assert dev is not None
    assert config.evaluation is not None

    def log(row: dict[str, Any]) -> None:
        run.log(row)
        if "loss" in row:
            losses.append(row["loss"])

    turns.built(
        parameters=model.parameter_count(),
        flops_per_token=useful_flops(model, job, source),
        settings={key: getattr(config, key) for key in ("precision", "compile", "deterministic")},
        versions=environment()["packages"] | {"nalanda": environment()["commit"]},
    )
    hooks = [Evaluation(config.evaluation, dev, config.objective), Gate()]
    with turns.race():
        fit(
            model,
            config.objective,
            source,
            config,
            run.path,
            hooks=hooks,
            log=log,
            rewind=lambda step: None,
        )
    assert all(map(math.isfinite, losses))
    turns.report(tokens=[tokens_of(source, step) for step in range(turns.steps)], losses=losses)


if __name__ == "__main__":
    main()
