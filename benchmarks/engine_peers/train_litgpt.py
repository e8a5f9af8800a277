"""LitGPT's own pre-training in the race: `litgpt.pretrain.setup`, which always compiles. Needs litgpt (PyPI).

Its network is a GPT-NeoX of the same sizes (LayerNorm, GELU, biases, tied embeddings; rotary positions in place of
learned ones, which LitGPT does not have). On a CPU its own choice of precision is 32-true: `litgpt-default`.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from turns import Turns, keep_memory

turns = Turns()
import litgpt.pretrain  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402
from litgpt import Config  # noqa: E402
from litgpt.args import EvalArgs, TrainArgs  # noqa: E402
from litgpt.data import DataModule  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "litgpt-default": {"precision": None, "fused": False},
    "litgpt-tuned": {"precision": "bf16-mixed", "fused": True},
}


class Blocks(Dataset[Tensor]):
    """A stream of tokens in blocks of one more than the context, as LitGPT's own data modules give them."""

    def __init__(self, path: Path, length: int) -> None:
        stream = np.memmap(path, dtype=np.uint16, mode="r")
        self.rows = stream[: len(stream) // length * length].reshape(-1, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.rows[index].astype(np.int64))


class Tokens(DataModule):
    """train.bin and val.bin."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.rows, self.length = folder, 1, 1

    def connect(
        self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None, **_: Any
    ) -> None:
        """Takes the sizes."""
        self.rows, self.length = batch_size, (max_seq_length or 1) + 1

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Shuffled."""
        return DataLoader(
            Blocks(self.folder / "train.bin", self.length), self.rows, shuffle=True, drop_last=True
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        """In order."""
        return DataLoader(Blocks(self.folder / "val.bin", self.length), self.rows, drop_last=True)


def config_of(job: dict[str, Any]) -> Config:
    """The network."""
    return Config(
        name="bench",
        block_size=job["length"],
        vocab_size=job["vocabulary"],
        padded_vocab_size=job["vocabulary"],
        n_layer=job["layers"],
        n_head=job["heads"],
        n_embd=job["hidden"],
        intermediate_size=job["inner"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=True,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
    )


def main() -> None:
    """Trains until the race is over."""
    turns.imported()
    plan, job = turns.plan, turns.job
    how = SETTINGS[plan["variant"]] | plan["overrides"]
    if how.get("keep_memory"):
        keep_memory()
    rows = job["batch_tokens"] // job["length"]
    if how["fused"]:  # it asks for fused=False on every CPU
        plain = torch.optim.AdamW
        torch.optim.AdamW = lambda *a, **k: plain(*a, **{**k, "fused": True})  # type: ignore[assignment,misc]
    found: dict[str, int] = {}

    def fit(*args: Any, state: dict[str, Any], **more: Any) -> None:
        found["parameters"] = sum(p.numel() for p in state["model"].parameters())
        given(*args, state=state, **more)

    given, litgpt.pretrain.fit = litgpt.pretrain.fit, fit
    turns.each_optimizer_step()
    sys.argv = ["litgpt"]
    with turns.race():
        litgpt.pretrain.setup(
            "bench",
            model_config=config_of(job),
            out_dir=Path(plan["folder"]) / "run",
            precision=how["precision"],
            data=Tokens(Path(plan["data"]) / "peers"),
            train=TrainArgs(
                save_interval=plan["every"],
                log_interval=plan["log_every"],
                global_batch_size=rows,
                micro_batch_size=rows,
                max_tokens=plan["steps"] * job["batch_tokens"],
                lr_warmup_steps=int(plan["warmup"]),
                max_norm=1.0,
                min_lr=plan["lr"] / 10,
                tie_embeddings=True,
            ),
            eval=EvalArgs(interval=plan["every"], max_iters=plan["evaluation_batches"]),
            optimizer={
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": plan["lr"], "weight_decay": 0.1},
            },
            logger_name="csv",
        )
    versions = {"torch": torch.__version__, "litgpt": version("litgpt")}
    turns.built(parameters=found["parameters"], settings=how, versions=versions)
    sys.stdout.flush()
    printed = (Path(plan["folder"]) / "output.txt").read_text(encoding="utf-8")
    losses = [float(loss) for loss in re.findall(r"loss train: ([\d.]+)", printed)]
    turns.report(tokens=[job["batch_tokens"]] * turns.steps, losses=losses)


if __name__ == "__main__":
    main()
