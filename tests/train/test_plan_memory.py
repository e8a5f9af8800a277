"""Memory by arithmetic against what torch keeps and holds, and against the sizes of known models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nalanda.models.named import FamilyConfig
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.models.reading import build_empty
from nalanda.nn.model import Model
from nalanda.nn.spec import Spec, TokensHeadSpec
from nalanda.train.optimizer import AdamWConfig, MuonConfig, Optimizer
from nalanda.train.plan_memory import MODES, Rows, Sizes, Split, activations, step_memory
from nalanda.train.precision import autocast

HEADS = {"tokens": TokensHeadSpec()}
SMALL: dict[str, Any] = {"layers": 3, "hidden": 128, "heads": 4}
LLAMA: dict[str, Any] = {"norm": "rms", "feedforward": "glu", "activation": "silu"}
MODELS = {
    "gpt": ModelConfig(kind="decoder", position="learned", **SMALL),
    "llama": ModelConfig(kind="decoder", qk_norm=True, **LLAMA, **SMALL),
    "grouped": ModelConfig(kind="decoder", kv_heads=2, **LLAMA, **SMALL),
    "post": ModelConfig(kind="encoder", norm_place="post", position="learned", bias=True, **SMALL),
    "dropout": ModelConfig(kind="encoder", position="learned", dropout=0.1, **SMALL),
    "attention dropout": ModelConfig(kind="encoder", attention_dropout=0.1, **SMALL),
    "pairs": ModelConfig(norm="rms", activation="relu", cross_rotary=True, **SMALL),
    "relative": ModelConfig(norm="rms", activation="relu", position="relative", **SMALL),
    "experts": ModelConfig.model_validate(
        {"kind": "decoder", **LLAMA, **SMALL, "moe": {"experts": 8, "top_k": 2, "inner": 128}}
    ),
}


def batch_of(spec: Spec, rows: int, length: int) -> tuple[dict[str, Tensor], int]:
    source = length // 2 if spec.encoder and spec.decoder else 0

    def stream(prefix: str, width: int) -> dict[str, Tensor]:
        return {
            f"{prefix}ids": torch.randint(spec.vocabulary, (rows, width)),
            f"{prefix}segments": torch.ones(rows, width, dtype=torch.int32),
            f"{prefix}positions": torch.arange(width, dtype=torch.int32).repeat(rows, 1),
        }

    return stream("", length) | (stream("source_", source) if source else {}), source


def kept_by_torch(model: Model, batch: dict[str, Tensor], precision: str) -> int:
    """Bytes of all storages that the backward pass keeps, weights apart."""
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    found: dict[int, tuple[int, Tensor]] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), value)  # held, so that no other takes its place
        return value

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
        autocast(precision, torch.device("cpu")),
    ):
        output = model(batch)
    assert output.hidden_BTD.requires_grad
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "length"), [(4, 192), (1, 640)])
@pytest.mark.parametrize("name", MODELS)
def test_activations_are_what_torch_keeps(name: str, rows: int, length: int, precision: str) -> None:
    torch.manual_seed(0)
    spec, mode = build_spec(MODELS[name], vocabulary=500), MODES[precision]
    model = Model(spec, HEADS).train()
    batch, source = batch_of(spec, rows, length)
    kept, scores = activations(spec, Rows(rows, length, source), mode, "cpu")
    casts = mode.copies * sum(
        weight.numel() for key, weight in model.named_parameters() if weight.ndim > 1 and "embed" not in key
    )
    casts -= mode.copies * model.transformer.tokens.weight.numel()
    # The output itself is counted, and kept by who asked for it.
    outputs = (rows * (length + source)) * spec.hidden * mode.stream
    assert kept + scores + casts - outputs == pytest.approx(kept_by_torch(model, batch, precision), rel=0.08)


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
def test_state_of_the_optimizer_is_what_it_holds(config: AdamWConfig | MuonConfig) -> None:
    spec = build_spec(MODELS["llama"], vocabulary=500)
    model = Model(spec, HEADS)
    optimizer = Optimizer(config, model)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step(1.0)
    held = sum(value.nbytes for value in optimizer.state().values())
    memory = step_memory(
        spec, Sizes.of(model), Rows(1, 64), MODES["fp32"], config, device="cpu", chunk=256, block=256
    )
    assert memory.parts["optimizer"] == pytest.approx(held, rel=0.001)
    assert memory.parts["weights"] == sum(weight.nbytes for weight in model.parameters())


@pytest.mark.parametrize(
    ("family", "preset", "theirs", "vocabulary"),
    [("gpt2", "gpt2", "GPT2Config", 50257), ("llama", "llama-3.2-1b", "LlamaConfig", 128256)],
)
def test_parameters_of_known_models_are_theirs(
    family: str, preset: str, theirs: str, vocabulary: int
) -> None:
    transformers = pytest.importorskip("transformers")
    config = FamilyConfig(family=family, preset=preset)
    numbers = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = Sizes.of(build_empty(config.spec(numbers), HEADS))
    values = {
        key: value
        for key, value in config.values(numbers).items()
        if key not in ("model_type", "rope_scaling")
    }
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, theirs)(**values))
    assert sizes.total == sum(weight.numel() for weight in model.parameters())
    assert sizes.total == {"gpt2": 124_439_808, "llama": 1_235_814_400}[family]


def test_a_step_of_a_model_with_experts_counts_only_those_that_are_used() -> None:
    sizes = Sizes.of(build_empty(build_spec(MODELS["experts"], vocabulary=500), HEADS))
    inactive = 3 * 6 * 3 * 128 * 128
    assert sizes.total - sizes.active == inactive
    assert sizes.held(Split(expert=8)) == sizes.total - sizes.experts * 7 / 8


def test_splitting_and_recomputing_need_less() -> None:
    spec = build_spec(ModelConfig(kind="decoder", layers=8, hidden=256, heads=8), vocabulary=1000)
    sizes, rows, mode = Sizes.of(build_empty(spec, HEADS)), Rows(4, 1024), MODES["bf16"]

    def peak(split: Split) -> float:
        return step_memory(
            spec, sizes, rows, mode, AdamWConfig(), device="cuda", chunk=512, block=512, split=split
        ).peak

    whole = peak(Split())
    for split in (Split(tensor=2), Split(context=2), Split(shard=4)):
        assert peak(split) < whole
    assert peak(Split(checkpointing="full")) < peak(Split(checkpointing="selective")) < whole


def test_the_peak_of_a_step_is_what_a_step_holds() -> None:
    """Measured as the tensors alive when the backward pass begins, in fp32 with one micro-batch."""
    spec = build_spec(MODELS["gpt"], vocabulary=500)
    sizes = Sizes.of(build_empty(spec, HEADS))
    memory = step_memory(
        spec, sizes, Rows(4, 256), MODES["fp32"], AdamWConfig(), device="cpu", chunk=256, block=256
    )
    assert memory.at == "forward"
    always = memory.parts["weights"] + memory.parts["optimizer"]
    of_forward = sum(memory.parts[name] for name in ("activations", "attention scores", "cross-entropy"))
    assert memory.peak == pytest.approx(always + of_forward)
    several = step_memory(
        spec,
        sizes,
        Rows(4, 256),
        MODES["fp32"],
        AdamWConfig(),
        device="cpu",
        chunk=256,
        block=256,
        micro_batches=2,
    )
    assert several.peak == pytest.approx(memory.peak + memory.parts["gradients"])
