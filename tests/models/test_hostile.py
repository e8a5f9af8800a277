"""Checkpoints that are damaged, contradict themselves or lie: one line naming file and key, at once, in no memory."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from nalanda.base.errors import UserError
from nalanda.models.auto import FAMILIES
from nalanda.models.exchange import load_model, save_model
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec
from nalanda.stages.use import open_model

SECONDS, BYTES = 2.0, 100e6
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 67, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 96, "tie_word_embeddings": False, "rope_theta": 500.0,
}  # fmt: skip
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers would write it: without a manifest."""
    folder = tmp_path_factory.mktemp("hostile") / "whole"
    torch.manual_seed(0)
    save_model(Model(FAMILIES["llama"].spec(CONFIG), {"tokens": TokensHeadSpec()}), folder)
    (folder / "manifest.json").unlink()
    load_model(folder)  # what torch imports when it first builds without memory counts as nobody's
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def peak() -> int:
    """The most memory that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def refused(place: Path, *words: str) -> str:
    """Loads what cannot be loaded; the message has all `words`."""
    before, start = peak(), time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as found:
            load_model(place)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(found.value)
    assert time.process_time() - start < SECONDS, message
    assert max(held, peak() - before) < BYTES, message
    assert "\n" not in message
    assert len(message) < 1000, message
    for word in words:
        assert word in message, message
    return message


def complaint(place: Path) -> str | None:
    """What loading says, if it is refused."""
    try:
        load_model(place)
    except UserError as error:
        return str(error)
    return None


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_the_folder_itself_is_right(folder: Path) -> None:
    load_model(folder)


# Damaged weights


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_truncated_weights(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    refused(folder, str(path))


def test_flipped_bits_in_the_header_are_refused_or_harmless(folder: Path) -> None:
    """Bits of the length and of the header: an error of ours, or the same tensors under their names."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, tried, survived = time.process_time(), 0, []
    for place in [*range(8), *range(8, 8 + length, 17)]:
        for bit in (0, 7) if place < 8 else (place % 8,):
            data[place] ^= 1 << bit
            path.write_bytes(data)
            message = complaint(folder)
            if message is None:
                survived.append(place)
            else:
                assert str(path) in message or "config.json" in message, (place, bit, message)
                assert "\n" not in message, (place, bit)
            data[place] ^= 1 << bit
            tried += 1
    assert time.process_time() - start < SECONDS + 0.05 * tried
    text = bytes(data[8 : 8 + length])
    metadata = text.find(b"__metadata__")
    for place in survived:  # only in what is not looked at: metadata, blanks
        near = text[max(place - 8 - 1, 0) : place - 8 + 1]
        assert metadata <= place - 8 <= text.find(b"}", metadata) or near.strip() == b"", (place, near)


def test_flipped_bits_in_the_data_are_found_by_the_manifest(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    save_model(load_model(whole), folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    refused(folder, str(path), "SHA-256")


@pytest.fixture
def sharded(whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    save_model(load_model(whole), folder, shard_bytes=20_000)
    (folder / "manifest.json").unlink()
    return folder


def test_a_shard_is_missing(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(sharded, "model.safetensors.index.json", shard.name)


def test_the_index_is_missing(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    refused(sharded, str(sharded), "index")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a\x00b.safetensors", 3, None, ["x"], {}]
)
def test_an_index_names_other_files(sharded: Path, name: Any) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    refused(sharded, str(path))


def test_tensors_of_types_that_hold_no_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int64)
    save_file(weights, path)
    refused(folder, str(path), "model.norm.weight")


# A config.json that contradicts the weights, or itself


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"num_attention_heads": 8}, "o_proj"),
        ({"hidden_size": 64}, "model.embed_tokens.weight"),
        ({"num_hidden_layers": 3}, "3 decoder layers"),
        ({"num_hidden_layers": 1}, "1 decoder layers"),
        ({"num_attention_heads": 6}, "o_proj"),
        ({"num_key_value_heads": 4}, "k_proj"),
        ({"head_dim": 16}, "o_proj"),
        ({"vocab_size": 68}, "model.embed_tokens.weight"),
        ({"intermediate_size": 96}, "gate_proj"),
        ({"attention_bias": True}, "bias"),
        ({"tie_word_embeddings": True}, "lm_head.weight"),
    ],
)
def test_a_config_that_contradicts_the_weights(folder: Path, values: dict[str, Any], word: str) -> None:
    change_config(folder, **values)
    refused(folder, str(folder), word)


@pytest.mark.parametrize("kind", ["lama", "mamba2", None, 3, ["llama"], {"a": 1}, "x" * 10_000, "a\nb"])
def test_an_unknown_model_type(folder: Path, kind: Any) -> None:
    change_config(folder, model_type=kind, state_size=128)
    refused(folder, str(folder / "config.json"), "model_type", "nearest is llama")


def test_an_unknown_model_type_says_what_differs(folder: Path) -> None:
    change_config(folder, model_type="mamba", state_size=128)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mixer.A_log"] = torch.zeros(3)
    save_file(weights, path)
    config = json.loads((folder / "config.json").read_text())
    del config["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "nearest is llama", "model.layers.0.mixer.A_log", "intermediate_size")


def test_remote_code_is_never_run(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    refused(folder, str(folder / "config.json"), "auto_map")


SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
ODD: list[Any] = [
    10**9, 10**12, 10**30, -1, 0, 2.5, float("nan"), float("inf"), "some", "x" * 100_000, [32], {}, True, None,
    [[]] * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("key", SIZES)
def test_hostile_sizes(folder: Path, key: str) -> None:
    for value in ODD:
        change_config(folder, **{key: value})
        refused(folder, str(folder))


@pytest.mark.parametrize("key", ["num_key_value_heads", "head_dim"])
def test_hostile_sizes_that_have_a_default(folder: Path, key: str) -> None:
    for value in [v for v in ODD if v is not None]:
        change_config(folder, **{key: value})
        refused(folder, str(folder))


def test_more_experts_than_there_are(whole: Path, tmp_path: Path) -> None:
    """Their keys are spelled out one by one: a number that the weights do not have is refused before."""
    config = {**CONFIG, "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}
    config["architectures"] = ["MixtralForCausalLM"]
    folder = tmp_path / "experts"
    save_model(Model(FAMILIES["mixtral"].spec(config), {"tokens": TokensHeadSpec()}), folder)
    (folder / "manifest.json").unlink()
    assert load_model(folder).spec.decoder[0].feedforward.experts == 3
    for count in (2, 4, 10**6, 10**12, -1, 0, "many", [3]):
        change_config(folder, num_local_experts=count)
        refused(folder, "config.json", "experts")
    change_config(folder, num_local_experts=3)
    shutil.copy(whole / "model.safetensors", folder / "model.safetensors")
    refused(folder, "3 experts, but the weights have none")


def test_many_layers_and_weights_of_another_kind(folder: Path) -> None:
    save_file({"a.b.c": torch.zeros(3)}, folder / "model.safetensors")
    for count in (2, 10_000):
        change_config(folder, num_hidden_layers=count)
        refused(folder, "config.json", f"{count:,} decoder layers, but the weights have none")


def test_huge_positions_take_no_memory(folder: Path) -> None:
    """Rotations have no table: only a number that cannot be one is refused."""
    for value in (-1, 0, "many", [96], float("nan")):
        change_config(folder, max_position_embeddings=value)
        refused(folder, "config.json", "max_position_embeddings")


@pytest.mark.parametrize(
    "values",
    [
        {"rms_norm_eps": "small"}, {"rms_norm_eps": -1}, {"rms_norm_eps": float("nan")}, {"hidden_act": "evil"},
        {"hidden_act": ["silu"]}, {"hidden_act": {"a": 1}}, {"hidden_act": None}, {"attention_bias": "maybe"},
        {"rope_theta": -5}, {"rope_theta": "x"}, {"rope_theta": [1]}, {"rope_theta": float("nan")},
        {"rope_scaling": {"rope_type": "evil"}}, {"rope_scaling": {"rope_type": ["linear"]}},
        {"rope_scaling": "linear"}, {"rope_scaling": [1]}, {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": "a"}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1] * 10**5, "long_factor": [1], "factor": 2}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": float("inf")}},
        {"rope_parameters": "evil"}, {"rope_parameters": {"rope_theta": {}}}, {"pretraining_tp": 2},
        {"initializer_range": "x"}, {"attention_dropout": 7}, {"nalanda": 3}, {"nalanda": {"heads": 3}},
        {"nalanda": {"heads": {"tokens": {"kind": "evil"}}}}, {"nalanda": {"training": [1]}},
        {"nalanda": {"training": {"dropout": "x"}}}, {"nalanda": {"heads": {"a.b": {"kind": "tokens"}}}},
    ],
    ids=lambda values: json.dumps(values)[:60],
)  # fmt: skip
def test_hostile_values(folder: Path, values: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **values}))
    refused(folder, "config.json")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"3", b"null", b"{", b"\xff\xfe", b"[" * 200_000, b'{"model_type": ' + b"[" * 100_000,
        b'{"a": 1e999}',
    ],
    ids=["empty", "list", "number", "null", "half", "not text", "deep", "deep value", "endless"],
)  # fmt: skip
def test_a_config_that_is_none(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    refused(folder, "config.json")


def test_labels_that_are_none(folder: Path) -> None:
    """Classes count: a billion labels are refused as the weights are not there."""
    for values in ({"num_labels": 10**12}, {"num_labels": -1}, {"num_labels": "x"}, {"id2label": 5}):
        config = {**CONFIG, **values, "architectures": ["LlamaForSequenceClassification"]}
        (folder / "config.json").write_text(json.dumps(config))
        refused(folder, str(folder))


def test_architectures_that_are_none(folder: Path) -> None:
    """What is not known is not followed: the heads are found by their weights."""
    for value in (3, "x", [3], [["a"]], [None], {"a": 1}, None, []):
        change_config(folder, architectures=value)
        assert set(load_model(folder).heads) == {"tokens"}


@pytest.mark.parametrize(
    ("family", "architecture", "values", "key"),
    [
        ("bert", "BertForSequenceClassification", {"classifier_dropout": [1]}, "classifier_dropout"),
        ("bert", "BertForTokenClassification", {"classifier_dropout": 7}, "classifier_dropout"),
        ("modernbert", "ModernBertForMaskedLM", {"classifier_activation": {}}, "classifier_activation"),
        ("gemma2", "Gemma2ForCausalLM", {"final_logit_softcapping": "x"}, "final_logit_softcapping"),
    ],
)
def test_hostile_values_of_heads(
    tmp_path: Path, family: str, architecture: str, values: dict[str, Any], key: str
) -> None:
    sizes = {key: value for key, value in CONFIG.items() if key not in ("model_type", "architectures")}
    config = {**sizes, "model_type": family, "tie_word_embeddings": True, "head_dim": 8}
    save_model(Model(FAMILIES[family].spec(config), {}), tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    change_config(tmp_path / "model", architectures=[architecture], **values)
    refused(tmp_path / "model", "config.json", key)


# Every family, GGUF, tokenizers


@pytest.mark.parametrize("name", list(FAMILIES))
def test_hostile_sizes_in_every_family(name: str, folder: Path) -> None:
    """Whatever key a family reads: a value of a wrong kind or size is refused, and never by another error."""
    family = FAMILIES[name]
    keys = sorted({key for part in family.keys for key in part.names()})
    for key in keys:
        for value in (10**12, "x" * 1000, [None] * 3):
            (folder / "config.json").write_text(json.dumps({"model_type": family.model_types[0], key: value}))
            refused(folder, str(folder))


def gguf_text(value: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value.encode()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "GGUF"),
        (b"GGUF", ""),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), ""),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_text("a", 2**62), ""),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_text("a") + struct.pack("<IIQ", 9, 4, 2**61), ""),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + gguf_text("t") + struct.pack("<I4QIQ", 4, *[2**40] * 4, 0, 0), ""),
    ],
    ids=["empty", "magic alone", "counts", "length of a name", "length of a list", "sizes of a tensor"],
)  # fmt: skip
def test_a_malicious_gguf_header(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    refused(path, str(path), word)


def test_a_tokenizer_with_more_ids_than_embeddings(folder: Path) -> None:
    """Neither the first prompt nor the first batch finds out: opening does."""
    words = {f"w{number}": number for number in range(80)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"pad_token": "w0", "bos_token": "w1", "eos_token": "w2", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"80 ids.* 67 embeddings \(vocab_size in config\.json\)") as found:
        open_model(folder)
    assert str(folder) in str(found.value)
    assert "\n" not in str(found.value)
