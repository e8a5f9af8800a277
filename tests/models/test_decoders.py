"""Families of decoders: what config.json means, key by key, as transformers takes it; what is refused; heads.

That their networks compute the same is compared in tests/parity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nalanda.base.errors import RunError
from nalanda.base.io import write_json
from nalanda.models.auto import FAMILIES
from nalanda.models.exchange import checkpoint_of, load_model, save_model
from nalanda.models.family import ConfigProblem
from nalanda.models.reading import build_empty
from nalanda.models.shape import essence
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec, MoESpec, SequenceHeadSpec, SpanHeadSpec, TokensHeadSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours
CLASSES = {
    "gpt2": "GPT2Config",
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "ministral": "MinistralConfig",
    "mixtral": "MixtralConfig",
    "qwen2": "Qwen2Config",
    "qwen2_moe": "Qwen2MoeConfig",
    "qwen3": "Qwen3Config",
    "qwen3_moe": "Qwen3MoeConfig",
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3": "Gemma3TextConfig",
    "olmo2": "Olmo2Config",
    "olmoe": "OlmoeConfig",
    "smollm3": "SmolLM3Config",
}
UNLIKE_DEFAULTS: dict[str, Any] = {
    "vocab_size": 67, "hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 64, "num_key_value_heads": 2,
    "head_dim": 10, "intermediate_size": 44, "max_position_embeddings": 99, "rms_norm_eps": 1e-4,
    "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1, "sliding_window_pattern": 2,
    "attention_bias": True, "mlp_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0, "qkv_bias": False,
    "num_local_experts": 9, "num_experts": 9, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 13, "norm_topk_prob": True, "mlp_only_layers": [3], "decoder_sparse_step": 2,
    "no_rope_layers": [0, 1, 1, 1], "n_embd": 384, "n_layer": 3, "n_head": 64, "n_inner": 40, "n_positions": 99,
    "layer_norm_epsilon": 1e-4, "activation_function": "relu", "hidden_act": "relu", "hidden_activation": "relu",
}  # fmt: skip
"""No value is any family's default, so that a key that is not read shows; yet they fit with all defaults."""


def theirs(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config.json that transformers writes for what it understands of `config`."""
    transformers = pytest.importorskip("transformers")
    values: dict[str, Any] = getattr(transformers, CLASSES[name])(**config).to_dict()
    return values


def known(name: str) -> list[str]:
    """The keys that the family reads, besides those that are refused unless they are as always."""
    parts = FAMILIES[name].keys
    return sorted(
        {key for part in parts for key in part.names() if type(part).__name__ != "Fixed"}
        & set(UNLIKE_DEFAULTS)
    )


def config_of(name: str) -> dict[str, Any]:
    config = {key: UNLIKE_DEFAULTS[key] for key in known(name)}
    config["tie_word_embeddings"] = not FAMILIES[name].shape({}).tie_embeddings
    if name == "gemma3":  # it has rotations by type of layer
        config["rope_parameters"] = {"full_attention": {"rope_type": "default", "rope_theta": 77.0}}
    return config


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The config less a key, and less what would not fit then."""
    gone = {key, "no_rope_layers"} if key == "num_hidden_layers" else {key}
    return {key: value for key, value in config.items() if key not in gone}


@pytest.mark.parametrize("name", CLASSES)
def test_absent_keys_mean_what_transformers_takes_them_for(name: str) -> None:
    family, config = FAMILIES[name], config_of(name)
    for some in [config, {}, *(without(config, key) for key in config)]:
        expected = essence(family.spec(theirs(name, some)))
        assert essence(family.spec(some)) == expected, set(config) - set(some)


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_is_read(name: str) -> None:
    family, config = FAMILIES[name], config_of(name)
    whole = family.spec(config)
    twice = {"num_experts", "num_local_experts"}  # two names of one number
    if twice <= set(config):
        assert family.spec({key: value for key, value in config.items() if key not in twice}) != whole
        config = without(config, "num_experts")
    for key in config:
        assert family.spec(without(config, key)) != whole, key


OLD: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3.1": (
        "llama",
        {
            "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
            "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": {
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
        },
    ),
    "llama 2, longer": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "num_hidden_layers": 2}),
    "dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "num_hidden_layers": 2}),
    "mistral 0.1": ("mistral", {"sliding_window": 4096, "rope_theta": 10000.0, "num_hidden_layers": 2}),
    "mistral 0.3": ("mistral", {"sliding_window": None, "rope_theta": 1000000.0, "num_hidden_layers": 2}),
    "mixtral": ("mixtral", {"num_local_experts": 8, "rope_theta": 1e6, "num_hidden_layers": 2}),
    "qwen 2.5": (
        "qwen2",
        {
            "max_window_layers": 1, "num_hidden_layers": 2, "rope_theta": 1000000.0, "sliding_window": 32768,
            "use_sliding_window": False, "num_key_value_heads": 2,
        },
    ),
    "qwen 2.5, longer": (
        "qwen2",
        {
            "num_hidden_layers": 2, "rope_theta": 1000000.0,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
    ),
    "qwen3 30b a3b": (
        "qwen3_moe",
        {
            "num_hidden_layers": 2, "num_experts": 16, "head_dim": 128, "decoder_sparse_step": 1,
            "mlp_only_layers": [], "norm_topk_prob": True, "rope_theta": 1000000.0, "sliding_window": None,
        },
    ),
    "gemma, first": ("gemma", {"hidden_act": "gelu", "num_hidden_layers": 2}),
    "gemma 2": (
        "gemma2",
        {
            "num_hidden_layers": 3, "sliding_window": 4096, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 10000.0,
            "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 224, "cache_implementation": "hybrid",
        },
    ),
    "gemma 3": (
        "gemma3",
        {
            "num_hidden_layers": 7, "sliding_window": 512, "sliding_window_pattern": 6, "rope_theta": 1000000,
            "rope_local_base_freq": 10000, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
    ),
    "gemma 3, another pattern": ("gemma3", {"num_hidden_layers": 5, "sliding_window_pattern": 2}),
    "smollm3": (
        "smollm3",
        {"num_hidden_layers": 5, "no_rope_layer_interval": 4, "rope_theta": 5000000.0, "use_sliding_window": False},
    ),
    "olmoe": ("olmoe", {"num_hidden_layers": 2, "num_experts": 64, "clip_qkv": None, "rope_theta": 10000.0}),
}  # fmt: skip
"""As files on the hub have it: old names, defaults left out."""


@pytest.mark.parametrize("case", OLD)
def test_configs_of_old_fashion(case: str) -> None:
    name, config = OLD[case]
    family = FAMILIES[name]
    assert essence(family.spec(config)) == essence(family.spec(theirs(name, config)))


PRESETS = [(name, preset) for name in CLASSES for preset in FAMILIES[name].presets]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_presets_go_both_ways(name: str, preset: str) -> None:
    family = FAMILIES[name]
    spec = family.spec(family.presets[preset])
    written = family.config(spec)
    assert written["model_type"] in family.model_types
    assert essence(family.spec(written)) == essence(spec)
    assert essence(family.spec(theirs(name, written))) == essence(spec)


PARAMETERS = {
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "mistral-7b-v0.3": 7_248_023_552, "mixtral-8x22b": 140_620_634_112,
    "llama-2-7b": 6_738_415_616, "smollm2-135m": 134_515_008,
    "llama-3.2-1b": 1_235_814_400, "mistral-7b-v0.1": 7_241_732_096, "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-7b": 7_615_616_512, "qwen3-0.6b": 596_049_920, "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624, "qwen1.5-moe-a2.7b": 14_315_784_192,
    "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984, "gemma-2-27b": 27_227_128_320, "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952, "olmo-2-1b": 1_484_916_736, "olmo-2-7b": 7_298_617_344, "olmo-2-13b": 13_716_198_400,
    "olmoe-1b-7b": 6_919_161_856, "smollm3-3b": 3_075_098_624,
}  # fmt: skip
"""What their publishers, or the sizes of their files, say."""


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_presets_have_the_published_size(name: str, preset: str) -> None:
    spec = FAMILIES[name].spec(FAMILIES[name].presets[preset])
    model = build_empty(spec, {"tokens": TokensHeadSpec()})
    assert model.parameter_count() == PARAMETERS[preset]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; only False"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp is 2; only 1"),
        ("llama", {"hidden_act": "glu"}, "hidden_act: activation 'glu' is not one of"),
        ("llama", {"num_key_value_heads": 5}, "kv_heads"),
        ("mistral", {"rope_parameters": {"rope_type": "su"}}, "rope_type 'su' is not one of"),
        ("mixtral", {"num_experts_per_tok": 9}, "top_k"),
        ("qwen3_moe", {"num_experts": 4, "num_local_experts": 5}, r"differ: \[4, 5\]"),
        ("qwen3_moe", {"num_experts": 0}, "num_experts = 0: cannot be read"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0; only None"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0: cannot be read"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers has 1 entries for 36 layers"),
    ],
)  # fmt: skip
def test_what_would_compute_something_else_is_refused(
    name: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigProblem, match=message):
        FAMILIES[name].spec(config)


SMALL = {
    "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 3, "n_embd": 16, "n_layer": 2, "n_head": 2,
    "num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 6,
    "shared_expert_intermediate_size": 10,
}  # fmt: skip


def small(name: str, head: HeadSpec, **more: Any) -> Model:
    torch.manual_seed(0)
    return Model(FAMILIES[name].spec({**SMALL, **more}), {head.kind: head}).eval()


@pytest.mark.parametrize("name", CLASSES)
def test_a_network_of_ours_is_saved_as_the_family_has_it(name: str, tmp_path: Path) -> None:
    model = small(name, TokensHeadSpec())
    model.origin = {"model_type": FAMILIES[name].model_types[0]}
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.origin["model_type"] == FAMILIES[name].model_types[0]
    assert loaded.head_specs == model.head_specs
    ids = torch.arange(9)[None]
    one, two = (m.logits(m({"ids": ids}).hidden_BTD) for m in (model, loaded))
    assert torch.equal(one, two)


def test_keys_as_files_on_the_hub_have_them() -> None:
    """Written down here once more, so that rows cannot be wrong in both directions at once."""
    for name, keys in {
        "gpt2": {
            "transformer.h.1.attn.c_attn.weight": (16, 48),
            "transformer.h.0.mlp.c_proj.weight": (64, 16),
        },
        "mixtral": {
            "model.layers.1.block_sparse_moe.experts.2.w1.weight": (12, 16),
            "model.layers.1.block_sparse_moe.experts.2.w2.weight": (16, 12),
            "model.layers.0.block_sparse_moe.gate.weight": (3, 16),
        },
        "qwen3_moe": {
            "model.layers.0.mlp.experts.0.up_proj.weight": (6, 16),
            "model.layers.0.self_attn.q_norm.weight": (8,),
        },
        "qwen2_moe": {
            "model.layers.0.mlp.shared_expert_gate.weight": (1, 16),
            "model.layers.0.self_attn.k_proj.bias": (8,),
        },
        "olmo2": {
            "model.layers.0.self_attn.k_norm.weight": (8,),
            "model.layers.0.self_attn.q_norm.weight": (16,),
        },
        "gemma3": {"model.layers.1.post_feedforward_layernorm.weight": (16,)},
    }.items():
        model = small(name, TokensHeadSpec())
        model.origin = {"model_type": FAMILIES[name].model_types[0]}
        stored = {entry.key: entry.shape for entry in checkpoint_of(model)[1]}
        assert {key: stored.get(key) for key in keys} == keys


def test_gpt2_as_the_hub_has_it(tmp_path: Path) -> None:
    """Without the prefix, and with each layer's mask beside its weights."""
    model = small("gpt2", TokensHeadSpec())
    save_model(model, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    old = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 9, 9), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(old, tmp_path / "model" / "model.safetensors")
    loaded = load_model(tmp_path / "model", verify=False)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_an_answering_llama_keeps_the_prefix_it_was_given(tmp_path: Path) -> None:
    model = small("llama", SpanHeadSpec())
    keys = {entry.key for entry in checkpoint_of(model)[1]}
    assert {"transformer.embed_tokens.weight", "qa_outputs.weight"} <= keys
    assert not any(key.startswith("model.") for key in keys)
    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").head_specs == model.head_specs


@pytest.mark.parametrize("cap", [None, 5.0, 30.0])
def test_capped_logits_are_said_in_the_config(cap: float | None, tmp_path: Path) -> None:
    model = small("gemma2", TokensHeadSpec(softcap=cap))
    config = checkpoint_of(model)[0]
    assert config.get("final_logit_softcapping", 30.0) == cap
    assert "nalanda" not in config
    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").head_specs == model.head_specs


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_not_wanted_is_left_out(tied: bool, tmp_path: Path) -> None:
    save_model(small("llama", TokensHeadSpec(), tie_word_embeddings=tied), tmp_path / "model")
    said: list[str] = []
    model = load_model(tmp_path / "model", {"labels": SequenceHeadSpec(classes=3)}, note=said.append)
    assert list(model.head_specs) == ["labels"]
    assert any("'lm_head.weight' left out" in text for text in said) is not tied


def test_ids_are_not_those_of_another_model() -> None:
    config = checkpoint_of(small("smollm3", TokensHeadSpec()))[0]
    assert [config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [None] * 3


def test_experts_that_a_family_cannot_say() -> None:
    spec = FAMILIES["mixtral"].spec(SMALL)
    block = spec.decoder[0]
    assert isinstance(block.feedforward, MoESpec)
    odd = block.model_copy(update={"feedforward": block.feedforward.model_copy(update={"scale": 2.0})})
    with pytest.raises(ValueError, match="family mixtral cannot say this network"):
        FAMILIES["mixtral"].config(spec.model_copy(update={"decoder": (odd,) * 2}))


def test_a_model_that_also_sees_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "gemma3", "text_config": {}, "vision_config": {}})
    save_model(small("gemma3", TokensHeadSpec()), tmp_path / "model")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
    with pytest.raises(RunError, match=r"model_type is 'gemma3'.*nearest is gemma3"):
        load_model(tmp_path)
