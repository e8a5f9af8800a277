"""Writes GGUF files, which llama.cpp and what is built on it read.

write_gguf(path, config, [Entry("model.embed_tokens.weight", (49152, 576), torch.bfloat16, make), ...], tokenizer,
           quantization="q8_0")

`config` and the entries' names are a Hugging Face checkpoint's; `tokenizer` is the `tokenizer.*` metadata. The file
appears whole or not at all, and one tensor at a time is in memory. As in llama.cpp, vectors, the experts' router and
learned positions stay F32, and in a q8_0 file a matrix whose rows are no whole blocks of 32 becomes F16.

A Mistral's window is written, and read again here; llama.cpp takes the model for a Llama and looks at all places.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor

from nalanda.base.errors import RunError
from nalanda.base.io import atomic_writer
from nalanda.models.gguf_config import write_config
from nalanda.models.gguf_header import ALIGNMENT, ARRAY, BOOL, MAGIC, STRING
from nalanda.models.gguf_names import Family, Op, Row, apply, expand
from nalanda.models.gguf_quants import TYPE_BY_NAME, QuantType, quantize
from nalanda.models.safetensors_file import Entry, quoted

Quantization = Literal["f32", "f16", "q8_0"]
VERSION = 3
_CHUNK = 2**20  # numbers that are quantized at once
# Number format of the matrices, and what `general.file_type` calls the file.
_FORMATS: dict[str, tuple[QuantType, int]] = {
    "f32": (TYPE_BY_NAME["F32"], 0),
    "f16": (TYPE_BY_NAME["F16"], 1),
    "q8_0": (TYPE_BY_NAME["Q8_0"], 7),
}
_ALWAYS_F32 = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight")
# In old checkpoints: masks and frequencies, which every model computes for itself.
_IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_U32, _I32, _F32, _U64 = 4, 5, 6, 10
_UNUSED = 5  # the type of a token that no text gives


@dataclass
class _Part:
    """One tensor of the file: `entries` one after the other (several where experts are stacked)."""

    name: str
    shape: tuple[int, ...]
    kind: QuantType
    op: Op
    entries: dict[int, Entry] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return math.prod(self.shape) // self.kind.block * self.kind.size


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    entries: Sequence[Entry],
    tokenizer: Mapping[str, Any],
    quantization: Quantization = "f16",
) -> None:
    """Writes a model of one of the families of gguf_names.

    Raises RunError, naming the key, for what GGUF cannot say, a weight that is missing or has no place, or a value
    that is not finite in the format asked for; UserError when the disk is full.
    """
    family, numbers, tables = write_config(config, path)
    parts = _plan(path, config, family, numbers, entries, _FORMATS[quantization][0])
    parts += [
        _Part(name, tuple(table.shape), TYPE_BY_NAME["F32"], "copy", {0: _constant(name, table)})
        for name, table in tables.items()
    ]
    metadata: dict[str, Any] = {
        "general.architecture": family.architecture,
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": _FORMATS[quantization][1],
        "general.quantization_version": 2,
        **numbers,
        **_padded(path, tokenizer, numbers[f"{family.architecture}.vocab_size"]),
    }
    head = int(numbers.get(f"{family.architecture}.attention.key_length", 0))
    with atomic_writer(path, "wb") as file:
        file.write(_header(path, metadata, parts))
        for part in parts:
            _pad(file)
            for _, entry in sorted(part.entries.items()):
                _write(file, path, part, entry, head)
        _pad(file)


def _padded(path: Path, tokenizer: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The tokenizer's metadata, with a token for each row of the embeddings: llama.cpp wants as many."""
    full = dict(tokenizer)
    count = len(full.get("tokenizer.ggml.tokens", ()))
    if count > rows:
        raise RunError(f"{path}: the tokenizer has {count} tokens, config.json a vocab_size of {rows}")
    if 0 < count < rows:
        missing = rows - count
        full["tokenizer.ggml.tokens"] = [
            *full["tokenizer.ggml.tokens"],
            *(f"[PAD{n}]" for n in range(count, rows)),
        ]
        for key, filling in (("tokenizer.ggml.scores", -1000.0), ("tokenizer.ggml.token_type", _UNUSED)):
            if key in full:
                full[key] = [*full[key], *[filling] * missing]
    return full


def _constant(name: str, table: Tensor) -> Entry:
    return Entry(name, tuple(table.shape), table.dtype, lambda: table)


def _plan(
    path: Path,
    config: Mapping[str, Any],
    family: Family,
    numbers: Mapping[str, Any],
    entries: Sequence[Entry],
    kind: QuantType,
) -> list[_Part]:
    """The tensors in the order in which their first entries come."""
    layers = numbers[f"{family.architecture}.block_count"]
    experts = numbers.get(f"{family.architecture}.expert_count", 0)
    tied = bool(config.get("tie_word_embeddings", family.defaults.get("tie_word_embeddings", False)))
    if family.tied and not tied:
        raise RunError(
            f"{path}: config.json unties the embeddings; GGUF's {family.architecture} has them tied"
        )
    places: dict[str, tuple[str, Op, int, int]] = {}
    needed: set[str] = set()
    for row, n in expand(family.rows, layers):
        count = experts if "{e}" in row.theirs else 1
        for e in range(count):
            key = row.theirs.format(n=n, e=e)
            places[key] = (row.gguf.format(n=n), row.op, e, count if "{e}" in row.theirs else 0)
            if row.needed or (row.gguf == "output.weight" and not tied) or _promised(row, config):
                needed.add(key)
    parts: dict[str, _Part] = {}
    for entry in _renamed(path, family, entries, tied):
        if entry.key not in places:
            raise RunError(
                f"{path}: weight {quoted(entry.key)} has no place in a GGUF of {family.model_type}"
            )
        _add(path, parts, entry, *places[entry.key], kind)
        needed.discard(entry.key)
    if needed:
        more = f" (and {len(needed) - 1} more)" if len(needed) > 1 else ""
        raise RunError(f"{path}: weight {quoted(min(needed))} is missing{more}")
    return list(parts.values())


def _promised(row: Row, config: Mapping[str, Any]) -> bool:
    """Whether config.json says that the model has this bias."""
    said = config.get("attention_bias" if ".self_attn." in row.theirs else "mlp_bias", False)
    return row.gguf.endswith(".bias") and bool(said)


def _renamed(path: Path, family: Family, entries: Sequence[Entry], tied: bool) -> list[Entry]:
    """The entries to be written: without what is tied or computed, GPT-2's under their full names."""
    kept: list[Entry] = []
    seen: set[str] = set()
    for entry in entries:
        if entry.key.endswith(_IGNORED) or (tied and entry.key == "lm_head.weight"):
            continue
        if family.model_type == "gpt2" and not entry.key.startswith(("transformer.", "lm_head.")):
            entry = replace(entry, key=f"transformer.{entry.key}")
        if entry.key in seen:
            raise RunError(f"{path}: weight {quoted(entry.key)} is there twice")
        seen.add(entry.key)
        kept.append(entry)
    if tied and family.tied is False:  # llama.cpp asks for the output matrix all the same
        embedding = next((entry for entry in kept if entry.key == "model.embed_tokens.weight"), None)
        kept += [replace(embedding, key="lm_head.weight")] if embedding is not None else []
    return kept


def _add(
    path: Path,
    parts: dict[str, _Part],
    entry: Entry,
    name: str,
    op: Op,
    e: int,
    experts: int,
    kind: QuantType,
) -> None:
    shape = entry.shape[::-1] if op == "transpose" else entry.shape
    whole = (experts, *shape) if experts else shape
    if not shape or 0 in whole or len(whole) > 4:
        raise RunError(f"{path}: weight {quoted(entry.key)} has shape {entry.shape}")
    part = parts.setdefault(name, _Part(name, whole, _format(name, whole, kind), op))
    if part.shape != whole:
        raise RunError(
            f"{path}: weight {quoted(entry.key)} has shape {entry.shape}, unlike the other experts'"
        )
    part.entries[e] = entry


def _format(name: str, shape: tuple[int, ...], kind: QuantType) -> QuantType:
    if len(shape) == 1 or name.endswith(_ALWAYS_F32):
        return TYPE_BY_NAME["F32"]
    return kind if shape[-1] % kind.block == 0 else TYPE_BY_NAME["F16"]


def _write(file: IO[bytes], path: Path, part: _Part, entry: Entry, head: int) -> None:
    tensor = entry.make().detach()
    if tuple(tensor.shape) != entry.shape:
        raise RunError(
            f"{path}: weight {quoted(entry.key)} came with shape {tuple(tensor.shape)}, not {entry.shape}"
        )
    if part.op == "transpose":
        tensor = tensor.t()
    step = len(tensor) if tensor.dim() == 1 else max(1, _CHUNK // math.prod(tensor.shape[1:]))
    if part.op == "rotary":
        if len(tensor) % head:
            raise RunError(
                f"{path}: weight {quoted(entry.key)} has {len(tensor)} rows, no whole heads of {head}"
            )
        step = max(1, step // head) * head
    for start in range(0, len(tensor), step):
        rows = tensor[start : start + step].to("cpu", torch.float32)
        try:
            file.write(quantize(apply(part.op, rows, head).numpy(), part.kind))
        except ValueError as error:
            raise RunError(f"{path}: weight {quoted(entry.key)}: {error}") from None


def _pad(file: IO[bytes]) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))


def _header(path: Path, metadata: Mapping[str, Any], parts: Sequence[_Part]) -> bytes:
    pieces = [MAGIC, struct.pack("<IQQ", VERSION, len(parts), len(metadata))]
    for key, value in metadata.items():
        pieces += [_text(key), _value(path, key, value)]
    offset = 0
    for part in parts:
        dims = part.shape[::-1]
        pieces += [_text(part.name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        pieces.append(struct.pack("<IQ", part.kind.number, offset))
        offset += -(-part.size // ALIGNMENT) * ALIGNMENT
    return b"".join(pieces)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(path: Path, key: str, value: Any) -> bytes:
    """A metadata value with its type before it: truth values, 32-bit numbers where they fit, strings, and lists."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list | tuple):
        return struct.pack("<I", ARRAY) + _list(path, key, value)
    for kind, code, fits in (
        (BOOL, "?", isinstance(value, bool)),
        (_U32, "I", type(value) is int and 0 <= value < 2**32),
        (_I32, "i", type(value) is int and -(2**31) <= value < 0),
        (_U64, "Q", type(value) is int and 2**32 <= value < 2**64),
        (_F32, "f", isinstance(value, float)),
    ):
        if fits:
            return struct.pack(f"<I{code}", kind, value)
    raise RunError(f"{path}: key {quoted(key)}: {str(value)[:60]!r} cannot be written")


def _list(path: Path, key: str, values: Sequence[Any]) -> bytes:
    count = struct.pack("<Q", len(values))
    if all(isinstance(value, str) for value in values):
        return struct.pack("<I", STRING) + count + b"".join(_text(value) for value in values)
    for kind, code, fits in (
        (BOOL, "?", all(isinstance(value, bool) for value in values)),
        (_I32, "i", all(type(value) is int and -(2**31) <= value < 2**31 for value in values)),
        (_F32, "f", all(type(value) in (int, float) for value in values)),
    ):
        if fits:
            return struct.pack("<I", kind) + count + struct.pack(f"<{len(values)}{code}", *values)
    raise RunError(f"{path}: key {quoted(key)}: a list of mixed values cannot be written")
