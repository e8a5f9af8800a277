"""What is written: the formats, bit for bit; the metadata; and what is refused rather than lost."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nalanda.base.errors import RunError
from nalanda.models.gguf import open_gguf
from nalanda.models.gguf_names import FAMILIES, expand
from nalanda.models.gguf_write import write_gguf
from nalanda.models.safetensors_file import Entry

gguf = pytest.importorskip("gguf")

CONFIG: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
}
CONFIG["mixtral"] = {
    **CONFIG["llama"],
    "model_type": "mixtral",
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}
CONFIG["qwen3_moe"] = {
    **CONFIG["llama"],
    "model_type": "qwen3_moe",
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
}
CONFIG["gemma2"] = {**CONFIG["llama"], "model_type": "gemma2", "head_dim": 32, "query_pre_attn_scalar": 32}
CONFIG["gemma2"] |= {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
CONFIG["smollm3"] = {**CONFIG["llama"], "model_type": "smollm3"}
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "क", ""],
    "tokenizer.ggml.scores": [0.5, -1.0, 0.0],
    "tokenizer.ggml.token_type": [1, 3, 1],
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.bos_token_id": 1,
}


def shape(key: str, config: dict[str, Any]) -> tuple[int, ...]:
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], 32
    rows = {
        "embed_tokens": (config["vocab_size"], hidden),
        "q_proj": (config["num_attention_heads"] * head, hidden),
        "k_proj": (config["num_key_value_heads"] * head, hidden),
        "v_proj": (config["num_key_value_heads"] * head, hidden),
        "o_proj": (hidden, config["num_attention_heads"] * head),
        "gate": (3, hidden),
        **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), (inner, hidden)),
        **dict.fromkeys(("down_proj", "w2"), (hidden, inner)),
        **dict.fromkeys(("q_norm", "k_norm"), (head,)),
    }
    return rows.get(key.split(".")[-2], (hidden,))


def tensors(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under the names of the family's table."""
    random = torch.Generator().manual_seed(0)
    rows = [(row, n) for row, n in expand(FAMILIES[config["model_type"]].rows, 2) if row.needed]
    keys = [row.theirs.format(n=n, e=e) for row, n in rows for e in range(3 if "{e}" in row.theirs else 1)]
    return {key: torch.randn(shape(key, config), generator=random) for key in keys}


def entries(values: dict[str, Tensor]) -> list[Entry]:
    return [Entry(key, tuple(v.shape), v.dtype, lambda v=v: v) for key, v in values.items()]


def write(path: Path, model: str, quantization: Any = "f32", **change: Any) -> dict[str, Tensor]:
    config = {**CONFIG[model], **change}
    values = tensors(config)
    write_gguf(path, config, entries(values), TOKENIZER, quantization)
    return values


@pytest.mark.parametrize("quantization", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("model", ["llama", "mixtral"])
def test_formats(model: str, quantization: str, tmp_path: Path) -> None:
    """Matrices in the format asked for, the rest as llama.cpp has it; every byte as the gguf package makes it."""
    path = tmp_path / "m.gguf"
    values = write(path, model, quantization)
    reader = gguf.GGUFReader(path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == quantization.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    down = kinds["blk.1.ffn_down_exps.weight" if model == "mixtral" else "blk.1.ffn_down.weight"]
    assert down == (
        "F16" if quantization == "q8_0" else quantization.upper()
    )  # rows of 48 are no whole blocks
    if model == "mixtral":
        assert kinds["blk.0.ffn_gate_inp.weight"] == "F32"
    same = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
    }
    for tensor in reader.tensors:
        if tensor.name in same:
            expected = gguf.quants.quantize(values[same[tensor.name]].numpy(), tensor.tensor_type)
            assert tensor.data.tobytes() == expected.tobytes()
    if model == "mixtral":
        stacked = np.stack(
            [values[f"model.layers.1.block_sparse_moe.experts.{e}.w3.weight"] for e in range(3)]
        )
        tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_up_exps.weight")
        assert tensor.data.tobytes() == gguf.quants.quantize(stacked, tensor.tensor_type).tobytes()
    with open_gguf(path) as opened:
        limit = {"f32": 0, "f16": 2e-3, "q8_0": 2e-2}[quantization]
        for key, value in values.items():
            torch.testing.assert_close(opened.weights.read(key), value, rtol=0, atol=limit)


def test_metadata_is_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, "llama", "q8_0", rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_theta=5e5)
    fields = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    lists = {key for key, value in TOKENIZER.items() if isinstance(value, list)}
    assert {key: fields[key][:3] if key in lists else fields[key] for key in TOKENIZER} == TOKENIZER
    # llama.cpp wants a token for each row of the embeddings.
    assert {key: len(fields[key]) for key in lists} == dict.fromkeys(lists, 40)
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD39]"
    assert fields["tokenizer.ggml.token_type"][-1] == gguf.TokenType.UNUSED
    expected = {
        "general.architecture": "llama",
        "general.file_type": 7,
        "llama.block_count": 2,
        "llama.attention.key_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 5e5,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 2.0,
        "llama.vocab_size": 40,
    }
    assert {key: fields[key] for key in expected} == expected


def test_bfloat16_is_exact_in_f32(tmp_path: Path) -> None:
    values = {key: value.bfloat16() for key, value in tensors(CONFIG["llama"]).items()}
    write_gguf(tmp_path / "m.gguf", CONFIG["llama"], entries(values), {}, "f32")
    with open_gguf(tmp_path / "m.gguf") as opened:
        for key, value in values.items():
            assert torch.equal(opened.weights.read(key, torch.empty_like(value)), value)


def test_one_tensor_at_a_time_and_whole_or_not_at_all(tmp_path: Path) -> None:
    """Each tensor is made when its turn comes, once; a failure on the way leaves no file."""
    values = tensors(CONFIG["llama"])
    made: list[str] = []

    def make(key: str) -> Tensor:
        made.append(key)
        if len(made) == 5:
            raise RuntimeError("no more")
        return values[key]

    rows = [Entry(key, tuple(v.shape), v.dtype, lambda key=key: make(key)) for key, v in values.items()]
    with pytest.raises(RuntimeError, match="no more"):
        write_gguf(tmp_path / "m.gguf", CONFIG["llama"], rows, {}, "f16")
    assert list(tmp_path.iterdir()) == []
    write_gguf(tmp_path / "m.gguf", CONFIG["llama"], rows, {}, "f16")
    assert made[5:] == list(values)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("llama", {"model_type": "bert"}, "model_type 'bert'; GGUF is written of llama"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'; GGUF has no place"),
        ("llama", {"hidden_size": None}, "hidden_size None"),
        ("llama", {"tie_word_embeddings": False}, "'lm_head.weight' is missing"),
        (
            "llama",
            {"attention_bias": True},
            r"'model.layers.0.self_attn.k_proj.bias' is missing \(and 7 more\)",
        ),
        ("llama", {"num_hidden_layers": 3}, "'model.layers.2.* is missing"),
        ("llama", {"num_hidden_layers": 1}, "'model.layers.1.* has no place"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("mixtral", {"num_local_experts": 4}, r"experts\.3\.w1\.weight' is missing"),
        ("mixtral", {"sliding_window": 8}, "sliding_window 8; GGUF has no place"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob False"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers \[0\]"),
        ("gemma2", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar 99"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping None"),
        ("gemma2", {"tie_word_embeddings": False}, "unties"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ],
)
def test_nothing_is_lost_without_a_word(
    model: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = entries(tensors(CONFIG[model]))
    with pytest.raises(RunError, match=message) as caught:
        write_gguf(tmp_path / "m.gguf", {**CONFIG[model], **change}, values, {}, "f16")
    assert str(tmp_path / "m.gguf") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bad_weights(tmp_path: Path) -> None:
    values = tensors(CONFIG["llama"])
    path = tmp_path / "m.gguf"
    with pytest.raises(RunError, match="'extra' has no place"):
        write_gguf(path, CONFIG["llama"], entries({**values, "extra": torch.ones(2)}), {}, "f16")
    with pytest.raises(RunError, match=r"'model\.norm\.weight' is there twice"):
        write_gguf(path, CONFIG["llama"], entries(values) + entries(values)[1:2], {}, "f16")
    values["model.embed_tokens.weight"][3, 3] = 1e6
    with pytest.raises(
        RunError, match=r"'model\.embed_tokens\.weight': a value is NaN, infinite or too large for F16"
    ):
        write_gguf(path, CONFIG["llama"], entries(values), {}, "f16")
    with pytest.raises(RunError, match=r"41 tokens, .* a vocab_size of 40"):
        write_gguf(path, CONFIG["llama"], entries(values), {"tokenizer.ggml.tokens": ["a"] * 41}, "f32")
    with pytest.raises(RunError, match=r"key 'tokenizer\.x'.* cannot be written"):
        write_gguf(path, CONFIG["llama"], entries(values), {"tokenizer.x": [1, "a"]}, "f32")
    assert list(tmp_path.iterdir()) == []


def _copy(source: Path, target: Path, change: Any, **options: Any) -> None:
    """Writes a GGUF again with the gguf package's writer; `change` gives the tensors that one becomes."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents(), **options)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None
            )
    for tensor in reader.tensors:
        for name, data in change(tensor.name, np.array(tensor.data)):
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_experts_apart(tmp_path: Path) -> None:
    """Mixtral's first files have a tensor for each expert."""
    values = write(tmp_path / "new.gguf", "mixtral")

    def apart(name: str, data: Any) -> list[tuple[str, Any]]:
        if "_exps" not in name:
            return [(name, data)]
        return [(name.replace("_exps", f".{e}"), part) for e, part in enumerate(data)]

    _copy(tmp_path / "new.gguf", tmp_path / "old.gguf", apart)
    with open_gguf(tmp_path / "old.gguf") as opened:
        assert set(opened.weights.keys()) == set(values)
        assert all(torch.equal(opened.weights.read(key), value) for key, value in values.items())


def test_shards(tmp_path: Path) -> None:
    values = write(tmp_path / "m.gguf", "llama")
    _copy(tmp_path / "m.gguf", tmp_path / "s.gguf", lambda name, data: [(name, data)], split_max_tensors=8)
    parts = sorted(tmp_path.glob("s-*.gguf"))
    assert len(parts) == 3
    for part in parts[:2]:
        with open_gguf(part) as opened:
            assert all(torch.equal(opened.weights.read(key), value) for key, value in values.items())
            assert opened.config["hidden_size"] == 64
            assert "s-0000" in opened.weights.place("model.norm.weight")
    parts[1].rename(tmp_path / "lost.gguf")
    with pytest.raises(RunError, match=r"s-00002-of-00003\.gguf: no such file"):
        open_gguf(parts[0])
    with pytest.raises(RunError, match=r"lost\.gguf: key 'split\.count'"):
        open_gguf(tmp_path / "lost.gguf")


def test_files_that_do_not_fit_their_config(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "llama")

    def edited(change: Any) -> Path:
        _copy(tmp_path / "m.gguf", tmp_path / "e.gguf", change)
        return tmp_path / "e.gguf"

    with pytest.raises(RunError, match=r"e\.gguf: tensor 'blk\.1\.ffn_up\.weight' is missing"):
        open_gguf(edited(lambda name, data: [] if name == "blk.1.ffn_up.weight" else [(name, data)]))
    with pytest.raises(RunError, match=r"e\.gguf: tensor 'more' has no place in a model of type llama"):
        open_gguf(
            edited(
                lambda name, data: [(name, data), *([("more", data)] if name == "output_norm.weight" else [])]
            )
        )
    with pytest.raises(
        RunError, match=r"e\.gguf: tensor 'blk\.0\.attn_q\.weight' has 63 rows, no whole heads of 32"
    ):
        open_gguf(edited(lambda name, data: [(name, data[:63] if name == "blk.0.attn_q.weight" else data)]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_a_run_error_or_a_readable_model(tmp_path: Path, data: st.DataObject) -> None:
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    if not good.exists():
        write(good, "qwen3_moe", "q8_0", rope_scaling={"rope_type": "yarn", "factor": 2.0})
    raw = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 4000))] = data.draw(st.sampled_from([0, 1, 2, 7, 64, 127, 128, 255]))
    bad.write_bytes(raw)
    with contextlib.suppress(RunError), open_gguf(bad) as opened:
        for key in list(opened.weights.keys()):
            opened.weights.read(key)


def test_memory_is_a_piece_of_a_tensor(tmp_path: Path) -> None:
    """32 MB of F16 become float32 in place with a few MB beside; on the way out as well."""
    config = {**CONFIG["llama"], "vocab_size": 2**18}
    table = torch.randn(2**18, 64)
    values = {**tensors(CONFIG["llama"]), "model.embed_tokens.weight": table}
    path = tmp_path / "m.gguf"
    tracemalloc.start()
    write_gguf(path, config, entries(values), {}, "f16")
    with open_gguf(path) as opened:
        out = torch.empty_like(table)
        opened.weights.read("model.embed_tokens.weight", out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20
    assert torch.equal(out, table.half().float())


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_llama_cpp_agrees(quantization: Any, tmp_path: Path) -> None:
    """llama.cpp, where it is installed, computes what transformers computes from our reader's weights."""
    llama_cpp = pytest.importorskip("llama_cpp")
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "m.gguf"
    config = CONFIG["llama"]
    values = {key: value / 8 for key, value in tensors(config).items()}
    write_gguf(path, config, entries(values), {"tokenizer.ggml.model": "no_vocab"}, quantization)
    ids = [1, 5, 9, 20, 3, 7, 39, 11]
    theirs = llama_cpp.Llama(str(path), n_ctx=32, logits_all=True, verbose=False, n_threads=1)
    theirs.eval(ids)
    with open_gguf(path) as opened:
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.LlamaConfig(**opened.config)
        ).eval()
        model.load_state_dict({key: opened.weights.read(key) for key in values}, strict=False)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    # Its cache is in half precision, and its products with Q8_0 are in whole numbers.
    limit = {"f16": 1e-3, "q8_0": 2e-2}[quantization] * expected.abs().max().item()
    torch.testing.assert_close(torch.tensor(theirs.scores[: len(ids)]), expected, rtol=0, atol=limit)


def test_file_cut_short_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path, "llama")
    with open_gguf(path) as opened:
        os.truncate(path, path.stat().st_size - 9000)
        with pytest.raises(RunError, match=r"m\.gguf: weight .*cut short"):
            for key in opened.weights.keys():  # noqa: SIM118
                opened.weights.read(key)
