"""JoeyNMT's own training in the race: `joeynmt.training.train` on a Transformer of the same sizes.

Needs joeynmt (PyPI). It reads text: each token is written as a word ("t17"), so its sequences are the others'
(special tokens it adds itself). Its batches are by tokens, as in its own recipes: pairs in a random order until rows
times the longest side reach the budget. It validates by decoding and saves only then: both are left out, to its
advantage. `joeynmt-tuned` is what its code asks about ("torch.bfloat16 for cpu?"), and its network compiled, from
outside.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from turns import Turns, keep_memory

turns = Turns()
import joeynmt.training  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "joeynmt-default": {"bf16": False, "compile": False},
    "joeynmt-tuned": {"bf16": True, "compile": True},
}
SPECIALS = 4


def write_text(folder: Path, peers: Path, vocabulary: int) -> None:
    """The pairs as words, without the special tokens that JoeyNMT adds."""
    if (folder / "words.txt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        pairs = json.loads((peers / f"pairs-{split}.json").read_text(encoding="utf-8"))
        for name, side in (("source", 0), ("target", 1)):
            lines = (" ".join(f"t{number}" for number in pair[side][:-1]) for pair in pairs)
            (folder / f"{split}.{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = (f"t{number}" for number in range(SPECIALS, vocabulary))
    (folder / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def config_of(plan: dict[str, Any], text: Path) -> dict[str, Any]:
    """What its YAML files hold."""
    job = plan["job"]
    stack = {
        "type": "transformer",
        "num_layers": job["layers"],
        "num_heads": job["heads"],
        "embeddings": {"embedding_dim": job["hidden"], "scale": True, "dropout": 0.0},
        "hidden_size": job["hidden"],
        "ff_size": job["inner"],
        "dropout": 0.0,
        "layer_norm": "post",
        "activation": "swish",
    }
    side = {
        "level": "word",
        "lowercase": False,
        "max_length": job["length"],
        "voc_file": str(text / "words.txt"),
    }
    return {
        "name": "race",
        "joeynmt_version": "2.3.0",
        "model_dir": str(Path(plan["folder"]) / "run"),
        "use_cuda": False,
        "data": {
            "train": str(text / "train"),
            "dev": str(text / "val"),
            "dataset_type": "plain",
            "src": {"lang": "source", **side},
            "trg": {"lang": "target", **side},
        },
        "training": {
            "normalization": "tokens",
            "optimizer": "adamw",
            "learning_rate": plan["lr"],
            "learning_rate_warmup": int(plan["warmup"]),
            "scheduling": "warmupinversesquareroot",
            "clip_grad_norm": 1.0,
            "batch_size": job["batch_tokens"],
            "batch_type": "token",
            "epochs": 10_000,
            "updates": plan["steps"],
            "logging_freq": plan["log_every"],
            "validation_freq": 10 * plan["steps"],
        },
        "testing": {},
        "model": {"initializer": "xavier_uniform", "tied_embeddings": True, "tied_softmax": True,
                  "encoder": stack, "decoder": dict(stack)},
    }  # fmt: skip


def main() -> None:
    """Trains until the race is over."""
    plan, job = turns.plan, turns.job
    peers = Path(plan["data"]) / "peers"
    text = Path(plan["data"]) / "joeynmt"
    write_text(text, peers, job["vocabulary"])
    turns.imported()
    how = SETTINGS[plan["variant"]] | plan["overrides"]
    if how.get("keep_memory"):
        keep_memory()
    counts: list[int] = []
    found: dict[str, int] = {}
    manager = joeynmt.training.TrainManager
    given_step, given_start = manager._train_step, manager.train_and_validate

    def step(self: Any, batch: Any) -> Any:
        counts.append(int(batch.src_length.sum()) + batch.ntokens)
        return given_step(self, batch)

    def start(self: Any, **data: Any) -> None:
        found["parameters"] = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        if how["bf16"]:
            self.autocast = {"device_type": "cpu", "enabled": True, "dtype": torch.bfloat16}
        if how["compile"]:
            self.model._encode_decode = torch.compile(self.model._encode_decode, dynamic=True)
        given_start(self, **data)

    manager._train_step, manager.train_and_validate = step, start
    turns.each_optimizer_step()
    (Path(plan["folder"]) / "run").mkdir(parents=True)
    with turns.race():
        joeynmt.training.train(0, None, config_of(plan, text), skip_test=True)
    sys.stdout.flush()
    versions = {"torch": torch.__version__, "joeynmt": version("joeynmt")}
    turns.built(parameters=found["parameters"], settings=how, versions=versions)
    printed = (Path(plan["folder"]) / "output.txt").read_text(encoding="utf-8")
    losses = [float(loss) for loss in re.findall(r"Batch Loss: +([\d.]+)", printed)]
    turns.report(tokens=counts[: turns.steps], losses=losses)


if __name__ == "__main__":
    main()
