"""What every reader of a foreign format hands to `Tokenizer`: a tokenizer.json, and what no tokenizer.json can say.

Blueprint(definition(model=..., normalizer=[...], ...), roles={"eos": "</s>"}, origin="spiece.model")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nalanda.base.errors import DataError, RunError

OWN_KEY = "nalanda"
"""The key of tokenizer_config.json that holds an `Exact`: transformers knows nothing of it."""
LARGEST_FILE = 1 << 29
"""Bytes of a tokenizer's file beyond which it is refused; the largest in use have a tenth of this."""


@dataclass(frozen=True)
class Affixes:
    """The special tokens that a model expects around a text."""

    prefix: Sequence[str] = ()
    suffix: Sequence[str] = ()
    middle: Sequence[str] | None = None
    """What stands between two texts; without it the first has its suffix and the second its prefix."""


NO_AFFIXES = Affixes()


@dataclass(frozen=True)
class Exact:
    """What is done around the Rust pipeline, where that alone would not give the original's ids."""

    charsmap: bool = False
    """The Precompiled normalizer is replaced by the exact algorithm, before the pipeline."""
    protected: list[str] = field(default_factory=list)
    """Symbols that the charsmap leaves alone."""
    ids_end: int | None = None
    """Ids from here on are pieces without an entry in the vocabulary: they become `unk`."""
    unk: int | None = None
    unknown_score: float | None = None
    """Unigram: texts where 32-bit rounding decides are searched again as SentencePiece does, at this score for an
    unknown character."""


@dataclass(frozen=True)
class Blueprint:
    """All that a Tokenizer is made of."""

    definition: str
    """The content of a tokenizer.json."""
    roles: dict[str, str]
    """Role (pad, unk, bos, eos, mask, cls, sep) -> token."""
    origin: str
    """The file, for messages."""
    chat_template: str | None = None
    exact: Exact = field(default_factory=Exact)
    split_special: bool = False
    """What the folder tells transformers: whether a special token spelled in a text stays text. Ours says yes."""
    target: Blueprint | None = None
    """The tokenizer of target texts, where it is another one."""


def added_token(number: int, name: str, special: bool) -> dict[str, Any]:
    """An entry of added_tokens in a tokenizer.json; one that is not special is found in normalized text."""
    return {
        "id": number,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not special,
        "special": special,
    }


def definition(
    *,
    model: dict[str, Any],
    normalizer: Sequence[dict[str, Any]] = (),
    pre_tokenizer: Sequence[dict[str, Any]] = (),
    decoder: Sequence[dict[str, Any]] = (),
    added: Sequence[dict[str, Any]] = (),
    post_processor: dict[str, Any] | None = None,
) -> str:
    """A tokenizer.json of its parts."""
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: int(token["id"])),
        "normalizer": _sequence("normalizers", normalizer),
        "pre_tokenizer": _sequence("pretokenizers", pre_tokenizer),
        "post_processor": post_processor,
        "decoder": _sequence("decoders", decoder),
        "model": model,
    }
    return json.dumps(value, ensure_ascii=False)


def _sequence(key: str, steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", key: list(steps)}


def template(affixes: Affixes, numbers: Mapping[str, int]) -> dict[str, Any] | None:
    """The post-processor that puts special tokens around a text; `numbers` has their ids. None without any."""
    if not affixes.prefix and not affixes.suffix:
        return None
    middle = affixes.middle if affixes.middle is not None else [*affixes.suffix, *affixes.prefix]
    first = [*_special(affixes.prefix, 0), {"Sequence": {"id": "A", "type_id": 0}}]
    second = [*_special(middle, 0), {"Sequence": {"id": "B", "type_id": 1}}, *_special(affixes.suffix, 1)]
    names = dict.fromkeys([*affixes.prefix, *middle, *affixes.suffix])
    return {
        "type": "TemplateProcessing",
        "single": [*first, *_special(affixes.suffix, 0)],
        "pair": [*first, *second],
        "special_tokens": {name: {"id": name, "ids": [numbers[name]], "tokens": [name]} for name in names},
    }


def _special(names: Sequence[str], kind: int) -> list[dict[str, Any]]:
    return [{"SpecialToken": {"id": name, "type_id": kind}} for name in names]


def read_bytes(path: Path) -> bytes:
    """The content of a tokenizer's file. Raises RunError where it is missing, DataError where it is too large."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"{path}: {path.stat().st_size} bytes, too large for a tokenizer's file")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path}: no such file") from None


def read_text(path: Path) -> str:
    """The text of a tokenizer's file. Raises RunError where it is missing or not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: damaged, not UTF-8: {error}") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file, of any depth and size that a tokenizer may have. Raises RunError otherwise."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise RunError(f"{path}: damaged, not JSON: {error}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises RunError where it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunError(f"{path}: damaged, not a JSON mapping")
    return value
