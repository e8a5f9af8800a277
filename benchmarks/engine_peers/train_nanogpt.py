"""nanoGPT's own train.py in the race, run as it is from a clone; the environment variable NANOGPT says where.

`nanogpt-default` is its documented CPU mode (--device=cpu --compile=False). Its train.py never uses autocast on a CPU
and never the fused optimizer; `nanogpt-tuned` does what a user would who edits these two lines, from outside: the
context that it takes from contextlib is autocast to bf16, AdamW is made with fused=True, and --compile=True.
"""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from turns import Turns, keep_memory

turns = Turns()
import torch  # noqa: E402
import torch._dynamo  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "nanogpt-default": {"bf16": False, "compile": False, "fused": False, "attention": "sdpa"},
    "nanogpt-tuned": {"bf16": True, "compile": True, "fused": True, "attention": "sdpa"},
}


def adapt(how: dict[str, Any]) -> None:
    """What a user would change in two lines of train.py."""
    if how["bf16"]:
        context = torch.autocast("cpu", dtype=torch.bfloat16)
        contextlib.nullcontext = lambda *_: context  # type: ignore[assignment,misc]
    if how["fused"]:
        plain = torch.optim.AdamW
        torch.optim.AdamW = lambda *a, **k: plain(*a, **k, fused=True)  # type: ignore[assignment,misc]
    if (
        how["attention"] == "manual"
    ):  # its own way for a torch without it, which a model asks for when it is made
        del torch.nn.functional.scaled_dot_product_attention


def options(plan: dict[str, Any], how: dict[str, Any]) -> list[str]:
    """The command line."""
    job = plan["job"]
    values = {
        "dataset": str(Path(plan["data"]).resolve() / "peers"),
        "out_dir": str(Path(plan["folder"]) / "run"),
        "device": "cpu",
        "dtype": "float32",
        "compile": how["compile"],
        "eval_interval": plan["every"],
        "eval_iters": max(1, plan["evaluation_batches"] // 2),  # of both splits
        "log_interval": plan["log_every"],
        "gradient_accumulation_steps": 1,
        "batch_size": job["batch_tokens"] // job["length"],
        "block_size": job["length"],
        "n_layer": job["layers"],
        "n_head": job["heads"],
        "n_embd": job["hidden"],
        "learning_rate": plan["lr"],
        "warmup_iters": int(plan["warmup"]),
        "max_iters": plan["steps"],
        "lr_decay_iters": plan["steps"],
    }
    return [f"--{key}={value}" for key, value in values.items()]


def main() -> None:
    """Trains until the race is over."""
    clone = Path(os.environ["NANOGPT"])
    turns.imported()
    plan = turns.plan
    how = SETTINGS[plan["variant"]] | plan["overrides"]
    if how.get("keep_memory"):
        keep_memory()
    sdpa = torch.nn.functional.scaled_dot_product_attention
    adapt(how)
    counted: list[int] = []
    given = torch.nn.Module.train

    def first_train(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
        if not counted:  # the evaluation before step 0 calls it on the finished model
            counted.append(sum(p.numel() for p in module.parameters()))
            torch.nn.functional.scaled_dot_product_attention = sdpa
        return given(module, mode)

    torch.nn.Module.train = first_train  # type: ignore[method-assign]
    turns.each_optimizer_step()
    os.chdir(clone)
    sys.path.insert(0, str(clone))
    sys.argv = ["train.py", *options(plan, how)]
    with turns.race():
        runpy.run_path("train.py", run_name="__main__")
    turns.built(parameters=counted[0], settings=how, versions={"torch": torch.__version__})
    sys.stdout.flush()
    printed = (Path(plan["folder"]) / "output.txt").read_text(encoding="utf-8")
    losses = [float(loss) for loss in re.findall(r"^iter \d+: loss ([\d.]+)", printed, re.MULTILINE)]
    turns.report(tokens=[turns.job["batch_tokens"]] * turns.steps, losses=losses)


if __name__ == "__main__":
    main()
