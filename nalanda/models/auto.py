"""Which family reads a config.json, and what to say when none does.

family = find(config, path)          # by model_type
FAMILIES["llama"].presets            # named sizes
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nalanda.base.errors import RunError
from nalanda.models.bart import BART, MBART
from nalanda.models.bert import BERT
from nalanda.models.distilbert import DISTILBERT
from nalanda.models.family import Family
from nalanda.models.gemma import GEMMA, GEMMA2, GEMMA3
from nalanda.models.gpt2 import GPT2
from nalanda.models.llama import LLAMA
from nalanda.models.m2m100 import M2M100
from nalanda.models.marian import MARIAN
from nalanda.models.mistral import MINISTRAL, MISTRAL, MIXTRAL
from nalanda.models.modernbert import MODERNBERT
from nalanda.models.olmo import OLMO2, OLMOE
from nalanda.models.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from nalanda.models.roberta import ROBERTA, XLM_ROBERTA
from nalanda.models.rows import regex
from nalanda.models.smollm3 import SMOLLM3
from nalanda.models.t5 import MT5, T5

_DECODERS = (
    LLAMA, MISTRAL, MINISTRAL, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, GEMMA, GEMMA2, GEMMA3, OLMO2, OLMOE,
    SMOLLM3, GPT2,
)  # fmt: skip
_ENCODERS = (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, MODERNBERT)
_ENCODER_DECODERS = (T5, MT5, BART, MBART, M2M100, MARIAN)
FAMILIES: dict[str, Family] = {family.name: family for family in (*_DECODERS, *_ENCODERS, *_ENCODER_DECODERS)}
"""Every family, by its name."""
BY_TYPE: dict[str, Family] = {kind: family for family in FAMILIES.values() for kind in family.model_types}
"""Every family, by the model_type in config.json."""


def find(config: Mapping[str, Any], path: Path, keys: Collection[str] = ()) -> Family:
    """The family of a config.json; `keys` are the checkpoint's, for the message where none is found.

    Raises RunError for an unknown model_type, naming the nearest family and what differs, and for a config that
    asks to run code.
    """
    kind = config.get("model_type")
    if config.get("auto_map"):
        raise RunError(
            f"{path}: auto_map asks to run code from the model's folder, which Nalanda never does; "
            f"remove the key to read the model as a plain {kind!r}"
        )
    if isinstance(kind, str) and kind in BY_TYPE:
        return BY_TYPE[kind]
    near = max(FAMILIES.values(), key=lambda family: _likeness(family, config, keys))
    known = {name for part in near.keys for name in part.names()}
    missing = sorted(name for part in near.keys for name in part.names()[:1] if name not in config)
    foreign = _unplaced(near, keys) if keys else sorted(set(config) - known - _COMMON)
    raise RunError(
        f"{path}: model_type is {str(kind)[:60]!r}, which no family here reads; nearest is {near.name}"
        + (f"; it has no place for {_few(foreign)}" if foreign else "")
        + (f"; config.json lacks {_few(missing)}" if missing else "")
        + f". Known: {', '.join(sorted(BY_TYPE))}"
    )


_COMMON = {
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id", "model_type",
    "torch_dtype", "dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Keys of config.json that say nothing of the network."""


def _likeness(family: Family, config: Mapping[str, Any], keys: Collection[str]) -> float:
    """Share of what the family and the checkpoint name that both name."""
    names = {name for part in family.keys for name in part.names()}
    ours = len(names & set(config)) / max(len(names | (set(config) - _COMMON)), 1)
    placed = 1 - len(_unplaced(family, keys)) / len(keys) if keys else 0.0
    return ours + placed


def _unplaced(family: Family, keys: Collection[str]) -> list[str]:
    patterns = [
        regex(row.theirs) for row in (*family.rows, *(row for head in family.heads for row in head.rows))
    ]
    return [
        key
        for key in keys
        if not any(p.fullmatch(name) for p in patterns for name in (key, key.rpartition(".")[0]))
    ]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more
