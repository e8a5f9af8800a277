"""A tokenizer as the metadata of a GGUF file; `gguf.py` has the way back and says what the keys mean.

    metadata = to_metadata(tokenizer)
    from_metadata(metadata, "memory").encode(text) == tokenizer.encode(text)

GGUF knows a few kinds of tokenizers: SentencePiece's, byte-level BPE with a known regular expression, WordPiece that
lower-cases. Anything else is refused, tokenizers trained here among them: llama.cpp has no name for their cuts.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

from nalanda.base.errors import DataError
from nalanda.tokenizer.bytelevel import PATTERNS
from nalanda.tokenizer.gguf import PRE, PREFIX, ROLES
from nalanda.tokenizer.pretokenizer import CONTINUATION
from nalanda.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from nalanda.tokenizer.tokenizer import Tokenizer

_SPECIAL_SCORE = -1000.0


def to_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `tokenizer.*` keys of a GGUF file. Raises DataError for a tokenizer that GGUF cannot say."""
    value = json.loads(tokenizer.definition)
    model = value["model"]
    normalizer, pre = list(_steps(value, "normalizer")), list(_steps(value, "pre_tokenizer"))
    tokens, types = _tokens(tokenizer, value)
    kinds = {step["type"] for step in pre}
    if model["type"] == "BPE" and "ByteLevel" in kinds:
        made = _byte_level(model, normalizer, pre)
    elif model["type"] == "BPE" and _is_sentencepiece(normalizer, pre):
        made = _llama(model, normalizer, pre, tokens, types)
    elif model["type"] == "Unigram" and _is_sentencepiece(normalizer, pre):
        made = _t5(model, normalizer, pre, tokens)
    elif model["type"] == "WordPiece" and [(s["type"], s["lowercase"]) for s in normalizer] == [
        ("BertNormalizer", True)
    ]:
        made = {"model": "bert"}
        tokens = [_phantom(token) for token in tokens]
    else:
        raise DataError(
            f"a {model['type']} tokenizer with normalizer {[s['type'] for s in normalizer] or 'none'} and "
            f"pre-tokenizer {[s['type'] for s in pre] or 'none'} cannot be written as GGUF, "
            "which has no name for it"
        )
    made = {**made, "tokens": tokens, "token_type": types, **_around(tokenizer)}
    result = {PREFIX + key: found for key, found in made.items()}
    if tokenizer.chat_template is not None:
        result["tokenizer.chat_template"] = tokenizer.chat_template
    return result


def _steps(value: dict[str, Any], part: str) -> Iterator[dict[str, Any]]:
    found = value.get(part)
    if found is None:
        return
    for step in found.get("normalizers") or found.get("pretokenizers") or [found]:
        if step["type"] != "Sequence":
            yield step


def _tokens(tokenizer: Tokenizer, value: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Names and types in the order of the ids."""
    protected = set(tokenizer.exact.protected)
    special, user = (
        tokenizer.special_ids,
        {t["id"] for t in value.get("added_tokens", []) if not t["special"]},
    )
    tokens, types = [], []
    for number in range(tokenizer.vocabulary):
        name = tokenizer.token(number) if tokenizer.has(number) else f"[PAD{number}]"
        kind = NORMAL if tokenizer.has(number) else UNUSED
        if number in special:
            kind = UNKNOWN if number == tokenizer.role("unk") else CONTROL
        elif number in user:
            kind, name = USER_DEFINED, name.replace(SPACE, " ")
        elif name in protected:
            kind = USER_DEFINED
        elif number in tokenizer.byte_ids:
            kind = BYTE
        tokens.append(name)
        types.append(kind)
    return tokens, types


def _around(tokenizer: Tokenizer) -> dict[str, Any]:
    roles = {key: tokenizer.role(role) for role, key in ROLES.items() if role in tokenizer.roles}
    prefix, suffix = tokenizer.affixes
    ends = {"add_bos_token": bool(prefix), "add_eos_token": bool(suffix)}
    return {**{key: number for key, number in roles.items() if number is not None}, **ends}


def _is_sentencepiece(normalizer: list[dict[str, Any]], pre: list[dict[str, Any]]) -> bool:
    spaces = [s for s in normalizer if s["type"] == "Replace" and s["content"] == SPACE]
    plain = all(s["type"] in ("Precompiled", "Replace", "Prepend") for s in normalizer)
    metaspace = [s for s in pre if s["type"] == "Metaspace"]
    # Gemma's cut at spaces does nothing, since no space is left.
    others = [s for s in pre if s["type"] != "Metaspace" and s.get("pattern") != {"String": " "}]
    return plain and not others and bool(spaces or metaspace)


def _prefix(normalizer: list[dict[str, Any]], pre: list[dict[str, Any]]) -> dict[str, Any]:
    prepend = any(s["type"] == "Prepend" for s in normalizer)
    metaspace = any(s["type"] == "Metaspace" and s.get("prepend_scheme", "always") != "never" for s in pre)
    collapse = any(s["type"] == "Replace" and s["pattern"].get("Regex") == " {2,}" for s in normalizer)
    return {"add_space_prefix": prepend or metaspace, "remove_extra_whitespaces": collapse}


def _llama(
    model: dict[str, Any],
    normalizer: list[dict[str, Any]],
    pre: list[dict[str, Any]],
    tokens: list[str],
    types: list[int],
) -> dict[str, Any]:
    if any(step["type"] == "Precompiled" for step in normalizer):
        raise DataError(
            "a SentencePiece BPE with a charsmap cannot be written as GGUF: llama.cpp would not apply it"
        )
    scores: dict[str, float] = {}
    for left, right in _pairs(model):
        scores.setdefault(left + right, -float(len(scores)))
    lowest = -float(len(scores))
    rows = [
        scores.get(name, lowest) if kind == NORMAL else _SPECIAL_SCORE
        for name, kind in zip(tokens, types, strict=True)
    ]
    return {"model": "llama", "pre": "default", "scores": rows, **_prefix(normalizer, pre)}


def _t5(
    model: dict[str, Any], normalizer: list[dict[str, Any]], pre: list[dict[str, Any]], tokens: list[str]
) -> dict[str, Any]:
    scores = [float(score) for _, score in model["vocab"]]
    made: dict[str, Any] = {"model": "t5", "pre": "default", **_prefix(normalizer, pre)}
    made["scores"] = [*scores, *([_SPECIAL_SCORE] * len(tokens))][: len(tokens)]
    for step in normalizer:
        if step["type"] == "Precompiled":
            made["precompiled_charsmap"] = list(b64decode(step["precompiled_charsmap"]))
    return made


def _byte_level(
    model: dict[str, Any], normalizer: list[dict[str, Any]], pre: list[dict[str, Any]]
) -> dict[str, Any]:
    patterns: list[str] = []
    for step in pre:
        if step["type"] == "Split":
            patterns.append(step["pattern"].get("Regex", ""))
        elif step["type"] == "Digits" and step.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            patterns += [PATTERNS["gpt2"]] if step.get("use_regex", True) else []
        else:
            patterns.append(step["type"])
    wanted = (patterns, bool(model.get("ignore_merges")), [s["type"] for s in normalizer] == ["NFC"])
    for name, known in PRE.items():
        if (list(known.patterns), known.whole_words, known.nfc) == wanted:
            return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in _pairs(model)]}
    raise DataError(
        f"a byte-level tokenizer with the pre-tokenizer {' then '.join(patterns)[:120]!r} cannot be written as GGUF: "
        "llama.cpp has no name for it"
    )


def _pairs(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for row in model["merges"]:
        left, right = row.split(" ", 1) if isinstance(row, str) else row
        yield left, right


def _phantom(token: str) -> str:
    if token.startswith("[") and token.endswith("]"):
        return token
    return token.removeprefix(CONTINUATION) if token.startswith(CONTINUATION) else SPACE + token
