"""Every family, as a small random model: checkpoint -> our GGUF -> our reader, with transformers' as a judge."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nalanda.base.errors import RunError
from nalanda.models.gguf import open_gguf
from nalanda.models.gguf_names import FAMILIES
from nalanda.models.gguf_write import write_gguf
from nalanda.models.safetensors_file import Entry

transformers = pytest.importorskip("transformers")
# transformers warns of its own future and of configs it dislikes.
pytestmark = pytest.mark.filterwarnings("ignore")

_SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 768}
# Gemma's readers take 256 for granted in places, so heads have that size.
_GEMMA = {**_SMALL, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 8}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# transformers counts GPT-2's vocabulary here.
_TOKENIZER = {
    "tokenizer.ggml.tokens": [f"t{n}" for n in range(96)],
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 7,
}
_UNKNOWN = "transformers reads no GGUF of this architecture"
# name: (model_type, config, why transformers' reader gives other numbers, where it does)
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {**_SMALL, "tie_word_embeddings": False}, ""),
    "llama tied biases": (
        "llama",
        {**_SMALL, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        "transformers drops the biases",
    ),
    "llama wide heads": ("llama", {**_SMALL, "head_dim": 32}, ""),
    "llama 3": (
        "llama",
        {**_SMALL, "rope_theta": 500.0, "rope_scaling": _LLAMA3},
        "transformers ignores rope_freqs.weight",
    ),
    "llama linear": (
        "llama",
        {**_SMALL, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "transformers ignores rope.scaling",
    ),
    "mistral window": (
        "mistral",
        {**_SMALL, "sliding_window": 8},
        "transformers takes every Mistral for a Llama",
    ),
    "mixtral": (
        "mixtral",
        {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
        "transformers ignores expert_count",
    ),
    "qwen2": ("qwen2", {**_SMALL, "tie_word_embeddings": True}, ""),
    "qwen2 yarn": ("qwen2", {**_SMALL, "rope_scaling": _YARN}, "transformers ignores rope.scaling"),
    "qwen3": ("qwen3", {**_SMALL, "head_dim": 128}, ""),
    "qwen3_moe": (
        "qwen3_moe",
        {**_SMALL, **_MOE, "head_dim": 32, "num_experts": 4, "norm_topk_prob": True},
        "",
    ),
    "gemma2": ("gemma2", {**_GEMMA, "num_hidden_layers": 3}, ""),
    "gemma3": ("gemma3_text", {**_GEMMA, "num_hidden_layers": 7}, ""),
    "gemma3 large": (
        "gemma3_text",
        {**_GEMMA, "num_hidden_layers": 7, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        "transformers ignores rope.scaling",
    ),
    "gemma3 pattern": (
        "gemma3_text",
        {**_GEMMA, "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
        "transformers ignores the pattern of windows",
    ),
    "olmo2": ("olmo2", _SMALL, _UNKNOWN),
    "olmoe": (
        "olmoe",
        {**_SMALL, "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2},
        _UNKNOWN,
    ),
    "smollm3": ("smollm3", {**_SMALL, "num_hidden_layers": 5}, _UNKNOWN),
    "gpt2": (
        "gpt2",
        {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024},
        "",
    ),
}


def _tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _entries(tensors: dict[str, Tensor]) -> list[Entry]:
    return [
        Entry(key, tuple(value.shape), value.dtype, lambda value=value: value)
        for key, value in tensors.items()
    ]


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A small model of random weights, norms and biases included, as transformers saves it."""
    model_type, config, _ = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    made = transformers.AutoConfig.for_model(
        model_type, **config, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    write_gguf(
        folder / "model.gguf",
        json.loads((folder / "config.json").read_text()),
        _entries(_tensors(folder)),
        _TOKENIZER,
        "f32",
    )
    return request.param, folder


def _logits(folder: Path, **options: Any) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    ids = torch.arange(48).remainder(41)[None] + 3
    with torch.no_grad():
        return model(ids).logits


def test_reads_back_what_was_written(checkpoint: tuple[str, Path]) -> None:
    _, folder = checkpoint
    expected = _tensors(folder)
    with open_gguf(folder / "model.gguf") as model:
        weights = model.weights
        # OLMo's output matrix is written even where it is tied, because llama.cpp asks for it.
        assert set(weights.keys()) - {"lm_head.weight"} == set(expected) - {"lm_head.weight"}
        for key, value in expected.items():
            shifted = model.config["model_type"].startswith("gemma") and key.endswith("norm.weight")
            value = (value + 1) - 1 if shifted else value
            assert weights.shape(key) == tuple(value.shape)
            assert torch.equal(weights.read(key), value), key
            out = torch.zeros(value.shape[0] + 2, *value.shape[1:], dtype=torch.float64)
            assert weights.read(key, out[1:-1]) is not None
            assert torch.equal(out[1:-1], value.double()), key
            assert out[0].abs().sum() == out[-1].abs().sum() == 0
        assert model.generation == {"eos_token_id": [2, 7]}


def test_config_is_complete(checkpoint: tuple[str, Path], tmp_path: Path) -> None:
    """A folder made of nothing but the GGUF's config and weights computes what the original does."""
    _, folder = checkpoint
    with open_gguf(folder / "model.gguf") as model:
        (tmp_path / "config.json").write_text(json.dumps(model.config))
        tensors = {key: model.weights.read(key) for key in list(model.weights.keys())}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(_logits(tmp_path), _logits(folder), rtol=0, atol=2e-5)


def test_transformers_reads_ours(checkpoint: tuple[str, Path]) -> None:
    name, folder = checkpoint
    if MODELS[name][2]:
        pytest.skip(MODELS[name][2])
    torch.testing.assert_close(_logits(folder, gguf_file="model.gguf"), _logits(folder), rtol=0, atol=2e-5)


def test_families_are_all_tested() -> None:
    assert {model_type for model_type, _, _ in MODELS.values()} == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_files(name: str) -> None:
    """Every tensor of two published files equals what transformers makes of it."""
    folder = Path(os.environ.get("NALANDA_MODELS", ""))
    if not os.environ.get("NALANDA_MODELS") or not (folder / f"{name}.gguf").exists():
        pytest.skip(f"NALANDA_MODELS names no folder with {name}.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=f"{name}.gguf", dtype=torch.float32
    )
    state = theirs.state_dict()
    with open_gguf(folder / f"{name}.gguf") as model:
        keys = set(model.weights.keys())
        assert keys == set(state) - {"lm_head.weight"}
        assert all(torch.equal(model.weights.read(key), state[key]) for key in keys)
        config = dict(model.config)
        ours = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    assert ours.rope_parameters == theirs.config.rope_parameters
    assert ours.hidden_size == theirs.config.hidden_size


@pytest.mark.parametrize("checkpoint", ["llama"], indirect=True)
def test_wrong_place_is_said(checkpoint: tuple[str, Path]) -> None:
    _, folder = checkpoint
    with open_gguf(folder / "model.gguf") as model:
        with pytest.raises(RunError, match=r"model\.gguf.*'model\.norm\.weight'.*shape \(64,\).*\(3,\)"):
            model.weights.read("model.norm.weight", torch.zeros(3))
        with pytest.raises(RunError, match=r"weight 'no\.such' is missing"):
            model.weights.read("no.such")
    with pytest.raises(RunError, match=r"'model\.norm\.weight'.* was closed"):
        model.weights.read("model.norm.weight")


@pytest.mark.parametrize("checkpoint", ["gpt2"], indirect=True)
def test_old_names_of_gpt2(checkpoint: tuple[str, Path], tmp_path: Path) -> None:
    """The hub's first checkpoints have no prefix, and their attention masks are in the file."""
    _, folder = checkpoint
    old = {key.removeprefix("transformer."): value for key, value in _tensors(folder).items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    config = json.loads((folder / "config.json").read_text())
    write_gguf(tmp_path / "model.gguf", config, _entries(old), _TOKENIZER, "f32")
    assert (tmp_path / "model.gguf").read_bytes() == (folder / "model.gguf").read_bytes()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, message in (
        (tmp_path, "not a file"),
        (tmp_path / "pipe.gguf", "not a file"),
        (tmp_path / "none.gguf", "no such file"),
    ):
        with pytest.raises(RunError, match=message):
            open_gguf(path)


def _descriptors() -> list[str]:
    return [number for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
@pytest.mark.parametrize("checkpoint", ["llama"], indirect=True)
def test_file_is_closed_when_unused(checkpoint: tuple[str, Path]) -> None:
    _, folder = checkpoint
    path = str(folder / "model.gguf")
    weights = open_gguf(folder / "model.gguf").weights
    assert path in {os.readlink(f"/proc/self/fd/{number}") for number in _descriptors()}
    del weights
    assert path not in {os.readlink(f"/proc/self/fd/{number}") for number in _descriptors()}
