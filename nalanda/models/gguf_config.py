"""A GGUF file's metadata as a Hugging Face config.json, and back.

config = read_config(header, path)                    # {"model_type": "llama", "hidden_size": 576, ...}
family, metadata, tables = write_config(config, path)  # {"llama.block_count": 30, ...}, {"rope_freqs.weight": ...}

Numbers go by the rows of gguf_names; what has a shape of its own (head size, rotary scaling, Gemma's windows) is
below. config.json may be of either fashion: `rope_theta` and `rope_scaling`, or `rope_parameters`; the first is
given, because checkpoints on the hub have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nalanda.base.errors import RunError
from nalanda.models.gguf_header import Header
from nalanda.models.gguf_names import FAMILIES, Family, Number, family_of
from nalanda.models.gguf_rope import read_rope, write_rope

Config = dict[str, Any]
_MAX_EXPERTS = 4096
# Models whose queries are scaled by hidden / heads and not by the head's size; llama.cpp tells them by their depth.
_SCALED_BY_HIDDEN = {"gemma2": 46, "gemma3": 62}
# Every so many layers, the last one attends to all places and not to a window.
_PATTERN = {"gemma2": 2, "gemma3": 6}
_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


class _Metadata:
    """Typed look-ups below one architecture's name."""

    def __init__(self, header: Header, architecture: str, path: Path) -> None:
        self.values, self.architecture, self.path = header.metadata, architecture, path

    def error(self, key: str, what: str) -> RunError:
        return RunError(f"{self.path}: key '{self.architecture}.{key}': {what}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key; a list that says the same of every layer is that one value."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            if not value or any(item != value[0] for item in value):
                raise self.error(key, "differs between layers; such models cannot be read")
            value = value[0]
        if value is None:
            return None
        if kind is float and type(value) in (int, float):
            if not math.isfinite(value):
                raise self.error(key, f"{value} is no number to reckon with")
            return short(float(value))
        if type(value) is not kind:
            raise self.error(key, f"{str(value)[:60]!r} is no {kind.__name__}")
        if isinstance(value, int) and not 0 <= value < 2**31:
            raise self.error(key, f"{value} is out of range")
        return value


def short(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for the 9.99999975e-06 that a file holds of it."""
    return float(str(np.float32(value)))


def read_config(header: Header, path: Path) -> Config:
    """The config.json of the model in a GGUF file. Raises RunError naming the key that is missing or unknown."""
    architecture = header.metadata.get("general.architecture")
    family = family_of(architecture, header.metadata) if isinstance(architecture, str) else None
    if family is None:
        known = ", ".join(sorted({family.architecture for family in FAMILIES.values()}))
        raise RunError(
            f"{path}: key 'general.architecture': {str(architecture)[:60]!r} is not one of {known}"
        )
    metadata = _Metadata(header, family.architecture, path)
    config: Config = {"model_type": family.model_type, "architectures": [family.causal]}
    config |= _read_numbers(family, metadata, header)
    config |= _read_sizes(family, metadata, header, config)
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    if family.biases:
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    if family.model_type == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    config |= family.fixed
    if family.model_type != "gpt2":
        config |= read_rope(header, family.architecture, config, path)
    if family.architecture in _PATTERN:
        config |= _read_gemma(family, metadata, config)
    elif family.model_type == "mistral":
        config["sliding_window"] = metadata.get("attention.sliding_window", int)
    elif metadata.get("attention.sliding_window", int) and family.architecture == "olmo2":
        raise metadata.error("attention.sliding_window", "OLMo 3 has windows; it cannot be read")
    if family.model_type == "smollm3":
        config["no_rope_layers"] = _no_rope(config["num_hidden_layers"])
    # Said even where there is none: transformers would take the ids of a model of its own choice.
    ids = dict.fromkeys(_IDS) | read_ids(header.metadata, path)
    return config | ids | {"torch_dtype": "float32"}


def _read_numbers(family: Family, metadata: _Metadata, header: Header) -> Config:
    config: Config = {}
    for row in family.numbers:
        value = metadata.get(row.gguf, row.kind)
        if value is None and row.gguf == "attention.head_count_kv":
            value = config["num_attention_heads"]
        if value is None:
            value = family.defaults.get(row.theirs[0])
            if row.kind is int and value is None:
                raise metadata.error(row.gguf, "missing; convert the model again")
        if value == 0 and row.gguf != "attention.sliding_window":
            raise metadata.error(row.gguf, "0, which no model has")
        config[row.theirs[0]] = value
    _check_counts(family, metadata, header)
    return config


def _check_counts(family: Family, metadata: _Metadata, header: Header) -> None:
    """Counts that loops run over are held against the file before the first loop."""
    limits = {"block_count": len(header.tensors), "expert_count": _MAX_EXPERTS, "attention.head_count": 2**20}
    for row in family.numbers:
        value = metadata.get(row.gguf, row.kind)
        if row.kind is int and row.gguf in limits and not 0 < value <= limits[row.gguf]:
            raise metadata.error(row.gguf, f"{value} in a file of {len(header.tensors)} tensors")


def _read_sizes(family: Family, metadata: _Metadata, header: Header, config: Config) -> Config:
    """Vocabulary and head size, which are more certain from other places than from their own keys."""
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise RunError(f"{metadata.path}: tensor 'token_embd.weight' is missing or not a matrix")
    if family.model_type == "gpt2":
        return {"vocab_size": table.shape[0]}
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = metadata.get("attention.key_length", int) or hidden // heads
    if head % 2 or head < 2:
        raise metadata.error("attention.key_length", f"heads of size {head}, which no rotary embedding fits")
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := metadata.get(key, int, head)) != head:
            raise metadata.error(
                key, f"{other} differs from the heads' size {head}; such models cannot be read"
            )
    return {"vocab_size": table.shape[0], "head_dim": head}


def read_ids(metadata: Mapping[str, Any], path: Path) -> Config:
    """Ids of the tokens that begin, end and pad a text, as generation_config.json has them."""
    ids: Config = {}
    for theirs, ours in _IDS.items():
        keys = _ENDS if theirs == "eos_token_id" else (ours,)
        found = [metadata[key] for name in keys if (key := f"tokenizer.ggml.{name}") in metadata]
        if any(type(value) is not int for value in found):
            raise RunError(f"{path}: key 'tokenizer.ggml.{ours}': {str(found)[:60]} is no token's number")
        # A file may name several tokens that end a turn: generation stops at each.
        found = list(dict.fromkeys(found))
        if found:
            ids[theirs] = found if len(found) > 1 else found[0]
    return ids


def _no_rope(layers: int) -> list[int]:
    """SmolLM3: 1 where a layer has rotary positions, which every fourth has not."""
    return [int((n + 1) % 4 != 0) for n in range(layers)]


def _layer_types(windowed: list[bool]) -> list[str]:
    return ["sliding_attention" if window else "full_attention" for window in windowed]


def _query_scalar(architecture: str, config: Mapping[str, Any]) -> int:
    if config["num_hidden_layers"] == _SCALED_BY_HIDDEN[architecture]:
        return int(config["hidden_size"]) // int(config["num_attention_heads"])
    return int(config["head_dim"])


def _read_gemma(family: Family, metadata: _Metadata, config: Config) -> Config:
    key, layers = "attention.sliding_window_pattern", config["num_hidden_layers"]
    given = metadata.values.get(f"{family.architecture}.{key}", _PATTERN[family.architecture])
    if isinstance(given, list):
        if len(given) != layers or any(type(item) is not bool for item in given):
            raise metadata.error(key, f"it is not a list of {layers} truth values")
        windowed = given
    elif type(given) is int and 0 <= given < 2**31:
        # A period of 0 or 1 leaves no layer for the window.
        windowed = [given > 1 and n % given < given - 1 for n in range(layers)]
    else:
        raise metadata.error(key, f"{str(given)[:60]!r} is no period")
    # Gemma 2 has a window even where the file does not say so, Gemma 3 not.
    if not metadata.get("attention.sliding_window", int, 4096 if family.model_type == "gemma2" else 0):
        windowed = [False] * layers
    return {
        "layer_types": _layer_types(windowed),
        "query_pre_attn_scalar": _query_scalar(family.architecture, config),
    }


def write_config(config: Mapping[str, Any], path: Path) -> tuple[Family, dict[str, Any], dict[str, Tensor]]:
    """The family that a config.json belongs to, the metadata that say the same, and the tensors that do (rotary
    factors). Raises RunError for what GGUF has no place for: it would be lost without a word."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise RunError(
            f"{path}: config.json has model_type {model_type!r}; GGUF is written of {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    full = {**family.defaults, **config}
    for key, value in family.fixed.items():
        found = full.get(key, value)
        if found != value and not (found is None and not value):
            raise _no_place(path, key, found, value)
    metadata = {
        f"{family.architecture}.{row.gguf}": _number(row, full, family, path) for row in family.numbers
    }
    metadata = {key: value for key, value in metadata.items() if value is not None}
    metadata[f"{family.architecture}.vocab_size"] = int(_given(full, "vocab_size", path))
    tables: dict[str, Tensor] = {}
    if family.model_type != "gpt2":
        head = int(full.get("head_dim") or full["hidden_size"] // full["num_attention_heads"])
        full["head_dim"] = head
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            metadata[f"{family.architecture}.{key}"] = head
        rope, tables = write_rope(full, family, path)
        metadata |= {f"{family.architecture}.{key}": value for key, value in rope.items()}
    if family.architecture in _PATTERN:
        metadata |= _write_gemma(family, full, path)
    if family.model_type == "mistral" and full["sliding_window"]:
        metadata["llama.attention.sliding_window"] = int(full["sliding_window"])
    if (
        family.model_type == "olmoe"
        and metadata["olmoe.attention.head_count_kv"] != full["num_attention_heads"]
    ):
        raise _no_place(path, "num_key_value_heads", full["num_key_value_heads"], full["num_attention_heads"])
    if family.model_type == "smollm3":
        layers = full["num_hidden_layers"]
        if (given := full.get("no_rope_layers", _no_rope(layers))) != _no_rope(layers):
            raise _no_place(path, "no_rope_layers", given, _no_rope(layers))
    return family, metadata, tables


def _no_place(path: Path, key: str, found: object, known: object) -> RunError:
    return RunError(
        f"{path}: config.json has {key} {found!r}; GGUF has no place for it, and readers take {known!r}: "
        "save the model as safetensors"
    )


def _given(config: Mapping[str, Any], key: str, path: Path) -> Any:
    if config.get(key) is None:
        raise RunError(f"{path}: config.json has no '{key}'")
    return config[key]


def _number(row: Number, config: Mapping[str, Any], family: Family, path: Path) -> int | float | None:
    value = next((config[key] for key in row.theirs if config.get(key) is not None), None)
    if value is None and row.gguf == "attention.head_count_kv":
        value = config.get("num_attention_heads")
    if value is None and family.model_type == "gpt2" and row.gguf == "feed_forward_length":
        value = 4 * int(next(config[key] for key in ("n_embd", "hidden_size") if key in config))
    if value is None and row.theirs[0] in family.defaults:
        if family.defaults[row.theirs[0]] is not None:
            raise _no_place(path, row.theirs[0], None, family.defaults[row.theirs[0]])
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise RunError(f"{path}: config.json has {row.theirs[0]} {value!r}, which is no {row.kind.__name__}")
    return row.kind(value)


def _write_gemma(family: Family, config: Mapping[str, Any], path: Path) -> Config:
    scalar = _query_scalar(family.architecture, config)
    if config["query_pre_attn_scalar"] != scalar:
        raise _no_place(path, "query_pre_attn_scalar", config["query_pre_attn_scalar"], scalar)
    layers = config["num_hidden_layers"]
    usual = _PATTERN[family.architecture]
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or usual
    types = config.get("layer_types") or _layer_types([(n + 1) % period != 0 for n in range(layers)])
    windowed = [kind == "sliding_attention" for kind in types]
    if windowed == [(n + 1) % usual != 0 for n in range(layers)]:
        return {}
    return {f"{family.architecture}.attention.sliding_window_pattern": windowed}
