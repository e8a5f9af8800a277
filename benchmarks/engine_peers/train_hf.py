"""Hugging Face's Trainer in the race: GPT2LMHeadModel, BertForMaskedLM, MarianMTModel.

Needs transformers and accelerate (PyPI).

`hf-default` is the Trainer as it comes: fp32, eager, padding by its own collators, rows in a random order. `hf-tuned`
has autocast and torch.compile over fp32 weights; `hf-bf16` has weights of bf16 alone, which is faster and loses
small updates. benchmarks/results says what else was tried.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from turns import Turns, keep_memory

turns = Turns()
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402
import transformers  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    Trainer,
    TrainingArguments,
)

PLAIN: dict[str, Any] = {
    "bf16": False,  # autocast
    "weights": "float32",
    "compile": False,
    "mode": None,  # of torch.compile
    "attention": None,  # None: the model's default, sdpa
    "optimizer": None,  # None: the Trainer's default, fused AdamW
    "by_length": False,  # rows of like length in a batch
    "pad_to": None,
    "keep_memory": False,  # see turns.keep_memory
}
TUNED: dict[str, Any] = {**PLAIN, "bf16": True, "compile": True, "attention": "eager"}
HALF: dict[str, Any] = {**TUNED, "bf16": False, "weights": "bfloat16"}
LENGTHS: dict[str, Any] = {"by_length": True, "pad_to": 8}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "hf-default": {"causal": PLAIN, "masked": PLAIN, "seq2seq": PLAIN},
    "hf-tuned": {
        "causal": TUNED,
        "masked": TUNED,
        "seq2seq": {**TUNED, **LENGTHS},
    },
    "hf-bf16": {
        "causal": HALF,
        "masked": HALF,
        "seq2seq": {**HALF, **LENGTHS},
    },
}

Row = dict[str, Any]


class Blocks(Dataset[Row]):
    """A stream of tokens in blocks of one length; labels are the ids themselves, which the model shifts."""

    def __init__(self, path: Path, length: int, count: int | None = None) -> None:
        stream = np.memmap(path, dtype=np.uint16, mode="r")
        self.rows = stream[: len(stream) // length * length].reshape(-1, length)[:count]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        ids = torch.from_numpy(self.rows[index].astype(np.int64))
        return {"input_ids": ids, "labels": ids.clone()}


class Framed(Blocks):
    """Blocks between the two special tokens that a masked model expects."""

    def __init__(self, path: Path, length: int, special: dict[str, int], count: int | None = None) -> None:
        super().__init__(path, length - 2, count)
        self.first, self.last = special["bos"], special["eos"]

    def __getitem__(self, index: int) -> Row:
        return {"input_ids": [self.first, *self.rows[index].tolist(), self.last]}


class Pairs(Dataset[Row]):
    """Pairs of different lengths."""

    def __init__(self, path: Path, count: int | None = None) -> None:
        self.rows = json.loads(path.read_text(encoding="utf-8"))[:count]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        source, target = self.rows[index]
        return {"input_ids": source, "labels": target}


class MaskingCollator:
    """What DataCollatorForLanguageModeling does, which wants a tokenizer: 15 %, of which 80 / 10 / 10."""

    def __init__(self, special: dict[str, int], vocabulary: int, rate: float) -> None:
        self.special, self.vocabulary, self.rate = special, vocabulary, rate

    def __call__(self, rows: list[Row]) -> Row:
        ids = torch.tensor([row["input_ids"] for row in rows])
        labels = ids.clone()
        rates = torch.full(ids.shape, self.rate)
        rates[:, [0, -1]] = 0
        chosen = torch.bernoulli(rates).bool()
        labels[~chosen] = -100
        hidden = torch.bernoulli(torch.full(ids.shape, 0.8)).bool() & chosen
        ids[hidden] = self.special["mask"]
        random = torch.bernoulli(torch.full(ids.shape, 0.5)).bool() & chosen & ~hidden
        ids[random] = torch.randint(self.vocabulary, ids.shape)[random]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class PairsCollator:
    """What DataCollatorForSeq2Seq does, which wants a tokenizer: pads each side to the batch's longest row."""

    def __init__(self, special: dict[str, int], start: int, pad_to: int | None) -> None:
        self.pad, self.start, self.multiple = special["pad"], start, pad_to or 1

    def _padded(self, sides: list[list[int]], fill: int) -> torch.Tensor:
        width = -(-max(map(len, sides)) // self.multiple) * self.multiple
        return torch.tensor([side + [fill] * (width - len(side)) for side in sides])

    def __call__(self, rows: list[Row]) -> Row:
        ids = self._padded([row["input_ids"] for row in rows], self.pad)
        labels = self._padded([row["labels"] for row in rows], -100)
        before = torch.full((len(rows), 1), self.start)
        shifted = torch.cat([before, labels[:, :-1].masked_fill(labels[:, :-1] == -100, self.pad)], 1)
        mask = (ids != self.pad).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "decoder_input_ids": shifted}


class CountingTrainer(Trainer):
    """The Trainer, and a list of the tokens of each step."""

    counts: list[int]

    def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        """Counts what is not padding."""
        count = inputs["input_ids"].numel()
        if "decoder_input_ids" in inputs:
            count = int(inputs["attention_mask"].sum()) + int((inputs["labels"] != -100).sum())
        self.counts.append(count)
        return super().training_step(model, inputs, *rest, **more)


def model_of(job: dict[str, Any], special: dict[str, int], how: dict[str, Any]) -> Any:
    """The network with random weights."""
    layers, hidden, heads, inner = job["layers"], job["hidden"], job["heads"], job["inner"]
    ids = {f"{name}_token_id": special[name] for name in ("pad", "bos", "eos")}
    if how["attention"]:
        ids["attn_implementation"] = how["attention"]
    common: dict[str, Any] = {"vocab_size": job["vocabulary"], **ids}
    config: Any
    if job["kind"] == "causal":
        config = GPT2Config(
            n_layer=layers,
            n_embd=hidden,
            n_head=heads,
            n_inner=inner,
            n_positions=job["length"],
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            **common,
        )
        return GPT2LMHeadModel(config).to(getattr(torch, how["weights"]))
    if job["kind"] == "masked":
        config = BertConfig(
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=inner,
            max_position_embeddings=job["length"],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **common,
        )
        return BertForMaskedLM(config).to(getattr(torch, how["weights"]))
    config = MarianConfig(
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        d_model=hidden,
        activation_function="swish",
        scale_embedding=True,
        max_position_embeddings=job["length"],
        dropout=0.0,
        attention_dropout=0.0,
        use_cache=False,
        decoder_start_token_id=special["bos"],
        forced_eos_token_id=special["eos"],
        **common,
    )
    return MarianMTModel(config).to(getattr(torch, how["weights"]))


def data_of(job: dict[str, Any], plan: dict[str, Any], how: dict[str, Any]) -> tuple[Any, Any, Any, int]:
    """Training data, held-out data, collator, rows of a batch."""
    folder = Path(plan["data"]) / "peers"
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    length, kind = job["length"], job["kind"]
    if kind == "seq2seq":
        rows = round(plan["pair_tokens"] / facts["pair_tokens"])
        few = rows * plan["evaluation_batches"]
        collator = PairsCollator(facts["pairs"], facts["pairs"]["bos"], how["pad_to"])
        return Pairs(folder / "pairs-train.json"), Pairs(folder / "pairs-val.json", few), collator, rows
    rows = job["batch_tokens"] // length
    few = rows * plan["evaluation_batches"]
    if kind == "causal":
        return Blocks(folder / "train.bin", length), Blocks(folder / "val.bin", length, few), None, rows
    text = facts["text"]
    held = Framed(folder / "val.bin", length, text, few)
    masking = MaskingCollator(text, job["vocabulary"], job["masked"])
    return Framed(folder / "train.bin", length, text), held, masking, rows


def arguments(plan: dict[str, Any], how: dict[str, Any], rows: int) -> TrainingArguments:
    """The Trainer's settings; what is not named keeps its default."""
    changed: dict[str, Any] = {}
    if how["optimizer"]:
        changed["optim"] = how["optimizer"]
    if how["by_length"]:
        changed["train_sampling_strategy"] = "group_by_length"
    if how["mode"]:
        changed["torch_compile_mode"] = how["mode"]
    return TrainingArguments(
        output_dir=str(Path(plan["folder"]) / "run"),
        max_steps=plan["steps"],
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        learning_rate=plan["lr"],
        warmup_steps=int(plan["warmup"]),
        logging_steps=plan["log_every"],
        eval_strategy="steps",
        eval_steps=plan["every"],
        save_steps=plan["every"],
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=how["bf16"],
        torch_compile=how["compile"],
        remove_unused_columns=False,
        **changed,
    )


def main() -> None:
    """Trains until the race is over."""
    turns.imported()
    plan, job = turns.plan, turns.job
    how = SETTINGS[plan["variant"]][job["kind"]] | plan["overrides"]
    if how["keep_memory"]:
        keep_memory()
    torch.manual_seed(0)
    facts = json.loads((Path(plan["data"]) / "peers" / "facts.json").read_text(encoding="utf-8"))
    model = model_of(job, facts["pairs" if job["kind"] == "seq2seq" else "text"], how)
    train, held, collator, rows = data_of(job, plan, how)
    trainer = CountingTrainer(
        model=model,
        args=arguments(plan, how, rows),
        train_dataset=train,
        eval_dataset=held,
        data_collator=collator,
    )
    trainer.counts = []
    turns.each_optimizer_step()
    turns.built(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        settings={**how, "optim": str(trainer.args.optim), "attn": model.config._attn_implementation},
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    with turns.race():
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    turns.report(tokens=trainer.counts[: turns.steps], losses=losses)


if __name__ == "__main__":
    main()
