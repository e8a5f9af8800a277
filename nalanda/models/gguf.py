"""GGUF files as Hugging Face checkpoints: config.json, tensors by their Hugging Face names, and the raw metadata.

with open_gguf(Path("model.gguf")) as model:
    model.config["hidden_size"]; model.generation["eos_token_id"]; model.metadata["tokenizer.ggml.model"]
    model.weights.read("model.embed_tokens.weight", out=parameter)

Model families so never see GGUF: names, the order of rotary rows, norms stored with one added, transposed matrices
and stacked experts are undone here (gguf_names has the tables), and quantized numbers become float32 (gguf_quants),
a piece of a tensor at a time. gguf_write.write_gguf goes the other way.
"""

from __future__ import annotations

import math
import os
import re
import stat
import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from nalanda.base.errors import RunError
from nalanda.models.gguf_config import read_config, read_ids
from nalanda.models.gguf_header import Header, TensorInfo, read_header
from nalanda.models.gguf_names import FAMILIES, TABLES, Family, Op, Row, expand, undo
from nalanda.models.gguf_quants import dequantize
from nalanda.models.safetensors_file import quoted

_CHUNK = 2**20  # numbers that are dequantized at once
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_MAX_SHARDS = 1000


class GGUF:
    """An open GGUF file (or the shards of one), until it is closed or no longer used."""

    def __init__(self, path: Path, config: dict[str, Any], weights: GGUFWeights, header: Header) -> None:
        self.path = path
        self.config = config
        self.weights = weights
        self.metadata: Mapping[str, Any] = header.metadata
        self.generation: dict[str, Any] = read_ids(header.metadata, path)

    def close(self) -> None:
        """Closes the files; `weights` cannot be read any more."""
        self.weights.close()

    def __enter__(self) -> GGUF:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _File:
    """A file that stays the same one even where another takes its name meanwhile; closed when nothing uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A named pipe would otherwise wait for its other end.
            self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise RunError(f"{path}: no such file") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from None
        self.close = weakref.finalize(self, os.close, self.number)
        if not stat.S_ISREG(os.fstat(self.number).st_mode):
            raise RunError(f"{path}: not a file; pass the .gguf file itself")
        with open(self.number, "rb", buffering=0, closefd=False) as file:
            self.header = read_header(file, path)


@dataclass(frozen=True)
class _Source:
    """Where a weight lies: a tensor of a file, or one expert's part of it. `shape` is as in the file."""

    file: _File
    info: TensorInfo
    shape: tuple[int, ...]
    start: int
    op: Op


class GGUFWeights:
    """The tensors under their Hugging Face keys; every one is read as float32. See `weights.Weights`."""

    def __init__(self, origin: Path, sources: Mapping[str, _Source], head: int) -> None:
        self.origin = origin
        self._sources, self._head = sources, head

    def keys(self) -> Collection[str]:
        return self._sources.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        source = self._source(key)
        return source.shape[::-1] if source.op == "transpose" else source.shape

    def dtype(self, key: str) -> torch.dtype:
        self._source(key)
        return torch.float32

    def place(self, key: str) -> str:
        source = self._sources.get(key)
        if source is None:
            return f"{self.origin}: weight {quoted(key)}"
        return f"{source.info.path}: weight {quoted(key)} (tensor {quoted(source.info.name)})"

    def read(self, key: str, out: Tensor | None = None) -> Tensor:
        """The tensor, dequantized; with `out` (same shape, on the CPU, any dtype and strides) fills and returns that.

        Raises RunError where the file was cut short, `out` has another shape, or the numbers cannot be read.
        """
        source, shape = self._source(key), self.shape(key)
        if out is None:
            out = torch.empty(shape, dtype=torch.float32)
        if tuple(out.shape) != shape:
            raise RunError(f"{self.place(key)} has shape {shape}, its place in the model {tuple(out.shape)}")
        target = out.detach().t() if source.op == "transpose" else out.detach()
        # Only whole heads can be reordered, and a vector is one row of its blocks.
        step = source.shape[0] if len(source.shape) == 1 else max(1, _CHUNK // math.prod(source.shape[1:]))
        if source.op == "rotary":
            step = max(1, step // self._head) * self._head
        for start in range(0, source.shape[0], step):
            part = target[start : start + step]
            part.copy_(undo(source.op, self._rows(key, source, start, part.shape[0]), self._head))
        return out

    def close(self) -> None:
        for source in self._sources.values():
            source.file.close()

    def _source(self, key: str) -> _Source:
        if key not in self._sources:
            raise RunError(f"{self.place(key)} is missing")
        return self._sources[key]

    def _rows(self, key: str, source: _Source, first: int, count: int) -> Tensor:
        kind, numbers = source.info.kind, math.prod(source.shape[1:])
        size = count * numbers // kind.block * kind.size
        start = source.start + first * numbers // kind.block * kind.size
        if not source.file.close.alive:
            raise RunError(f"{self.place(key)} cannot be read: the file was closed")
        try:
            raw = os.pread(source.file.number, size, start)
        except OSError as error:
            raise RunError(f"{self.place(key)} cannot be read: {error.strerror}") from None
        if len(raw) != size:
            raise RunError(
                f"{self.place(key)}: the file ends within it; it was cut short since it was opened"
            )
        try:
            values = dequantize(raw, kind)
        except RunError as error:
            raise RunError(f"{self.place(key)}: {error}") from None
        return torch.from_numpy(values).view(count, *source.shape[1:])


def open_gguf(path: Path) -> GGUF:
    """Opens a GGUF file (any one of its shards): the whole header is checked, no tensor is read yet.

    Raises RunError naming the file and the key or tensor that is damaged, missing or of no known kind.
    """
    files = _open_all(path)
    header, first = _joined(files), files[0].path
    config = read_config(header, first)
    opened = {file.path: file for file in files}
    sources = {
        key: _Source(opened[info.path], info, shape, start, op)
        for key, info, shape, start, op in _assign(FAMILIES[config["model_type"]], header, config, first)
    }
    return GGUF(path, config, GGUFWeights(path, sources, config.get("head_dim", 0)), header)


def _open_all(path: Path) -> list[_File]:
    file = _File(path)
    count = file.header.metadata.get("split.count", 1)
    if count in (0, 1):
        return [file]
    name = _SHARD.search(path.name)
    if type(count) is not int or not 1 < count <= _MAX_SHARDS or name is None or int(name[2]) != count:
        raise RunError(
            f"{path}: key 'split.count': one of {str(count)[:20]} parts, which must be called "
            "NAME-00001-of-00002.gguf and so on: rename the files"
        )
    stem = path.name[: name.start()]
    return [
        _File(path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf")) for number in range(1, count + 1)
    ]


def _joined(files: list[_File]) -> Header:
    """The metadata of the first shard with the tensors of all."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in file.header.tensors.items():
            if name in tensors:
                raise RunError(f"{file.path}: tensor {quoted(name)} is in an earlier part as well")
            tensors[name] = info
    metadata, path = files[0].header.metadata, files[0].path
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise RunError(
            f"{path}: key 'split.tensors.count': {str(expected)[:20]} where the parts have {len(tensors)}"
        )
    return Header(metadata, tensors)


def _assign(
    family: Family, header: Header, config: Mapping[str, Any], path: Path
) -> list[tuple[str, TensorInfo, tuple[int, ...], int, Op]]:
    """Key, tensor, shape and start of every weight. Each tensor must have a place, and each place a tensor."""
    layers = config.get("num_hidden_layers", config.get("n_layer", 0))
    experts = config.get("num_experts", config.get("num_local_experts", 0))
    found: list[tuple[str, TensorInfo, tuple[int, ...], int, Op]] = []
    used = set(TABLES)
    for row, n in expand(family.rows, layers):
        for name, e in _names(row, n, experts, header):
            info = header.tensors.get(name)
            if info is None:
                if row.needed:
                    raise RunError(f"{path}: tensor {quoted(name)} is missing; convert the model again")
                continue
            used.add(name)
            if "{e}" in row.theirs and "{e}" not in row.gguf and e is None:
                found += _unstacked(row, n, experts, info, path)
            else:
                found.append(_whole(row.theirs.format(n=n, e=e), info, row.op, config, path))
    if left := sorted(header.tensors.keys() - used):
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise RunError(
            f"{path}: tensor {quoted(left[0])}{more} has no place in a model of type {family.model_type}"
        )
    return found


def _names(row: Row, n: int, experts: int, header: Header) -> list[tuple[str, int | None]]:
    """The tensors of a row: one, or one for each expert where the file has them apart."""
    name = row.gguf.format(n=n)
    if row.apart is not None and name not in header.tensors and row.apart.format(n=n, e=0) in header.tensors:
        return [(row.apart.format(n=n, e=e), e) for e in range(experts)]
    return [(name, None)]


def _whole(
    key: str, info: TensorInfo, op: Op, config: Mapping[str, Any], path: Path
) -> tuple[str, TensorInfo, tuple[int, ...], int, Op]:
    if op == "rotary" and info.shape[0] % config["head_dim"]:
        raise RunError(
            f"{path}: tensor {quoted(info.name)} has {info.shape[0]} rows, no whole heads of {config['head_dim']}"
        )
    if op == "transpose" and len(info.shape) != 2:
        raise RunError(f"{path}: tensor {quoted(info.name)} has shape {info.shape}, which is no matrix")
    return key, info, info.shape, info.start, op


def _unstacked(
    row: Row, n: int, experts: int, info: TensorInfo, path: Path
) -> list[tuple[str, TensorInfo, tuple[int, ...], int, Op]]:
    if len(info.shape) != 3 or info.shape[0] != experts:
        raise RunError(
            f"{path}: tensor {quoted(info.name)} has shape {info.shape}; it should stack {experts} experts"
        )
    each = info.size // experts
    return [
        (row.theirs.format(n=n, e=e), info, info.shape[1:], info.start + e * each, row.op)
        for e in range(experts)
    ]
