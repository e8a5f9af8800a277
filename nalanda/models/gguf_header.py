"""Reads the front of a GGUF file: its metadata and the list of its tensors. Nothing a file claims is believed.

with path.open("rb") as file:
    header = read_header(file, path)
    header.metadata["general.architecture"]; header.tensors["token_embd.weight"].shape

    magic "GGUF" | version | tensors | pairs | (key, type, value) ... | (name, dims, type, offset) ... | data

All is little-endian; the data begin at the next multiple of `general.alignment`. Every length is compared with the
bytes that are left before anything is allocated, and limits far beyond any real file bound the time it takes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from nalanda.base.errors import RunError
from nalanda.models.gguf_quants import TYPES, QuantType
from nalanda.models.safetensors_file import quoted

MAGIC = b"GGUF"
ALIGNMENT = 32  # where general.alignment is not given
STRING, ARRAY, BOOL = 8, 9, 7
# Numbers of the value types, and how struct and numpy spell them.
SCALARS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    BOOL: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}

_MAX_HEADER = 2**28  # bytes; the largest vocabularies take about 2**24
_MAX_PAIRS = 2**14
_MAX_TENSORS = 2**18
_MAX_KEY = 2**16 - 1  # bytes, by the specification
_MAX_ITEMS = (
    2**22
)  # of all arrays together; a vocabulary of 262144 tokens, scores, types and merges has 2**20
_MAX_DIMS = 4
_MAX_ALIGNMENT = 2**20
_STEP = 2**22


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `shape` as PyTorch has it (rows first), `start` and `size` in bytes of the file `path`."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: QuantType
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


class _Cursor:
    """Reads on from the start of a file, in steps, so that memory holds what was passed and little more."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.offset = 0
        self._file = file
        self._data = bytearray()
        self._items = 0

    def error(self, what: str) -> RunError:
        return RunError(f"{self.path}: {what}; the file is damaged or not what it says: get it again")

    def need(self, count: int, what: str) -> None:
        """Makes sure that `count` more bytes are there."""
        end = self.offset + count
        if end > self.size:
            raise self.error(f"{what}: {count} bytes wanted where {self.size - self.offset} are left")
        if end > _MAX_HEADER:
            raise self.error(f"{what}: the header takes more than {_MAX_HEADER // 2**20} MiB")
        while len(self._data) < end:
            piece = self._file.read(max(_STEP, end - len(self._data)))
            if not piece:
                raise self.error(f"{what}: the file ended at byte {len(self._data)}")
            self._data += piece

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        self.offset += count
        return bytes(self._data[self.offset - count : self.offset])

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def text(self, what: str, limit: int = _MAX_HEADER) -> str:
        length = self.u64(what)
        if length > limit:
            raise self.error(f"{what}: a length of {length} bytes")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise self.error(f"{what}: not UTF-8 ({problem.reason})") from None

    def texts(self, count: int, what: str) -> list[str]:
        """An array of strings: the long part of a header, so without a call per string."""
        self.need(8 * count, what)
        data, at, length_at = self._data, self.offset, struct.Struct("<Q").unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                if at + 8 > len(data):
                    self.offset = at
                    self.need(8, what)
                end = at + 8 + length_at(data, at)[0]
                if end > len(data):
                    self.offset = at
                    self.need(end - at, what)
                found.append(data[at + 8 : end].decode())
                at = end
        except UnicodeDecodeError as problem:
            raise self.error(f"{what}: string {len(found)} is not UTF-8 ({problem.reason})") from None
        self.offset = at
        return found

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self._array(what)
        return self._numbers(kind, 1, what)[0]

    def _array(self, what: str) -> list[Any]:
        kind, count = self.u32(what), self.u64(what)
        self._items += count
        if self._items > _MAX_ITEMS:
            raise self.error(f"{what}: a list of {count}")
        if kind == ARRAY:
            raise self.error(f"{what}: an array of arrays, which no known key has")
        return self.texts(count, what) if kind == STRING else self._numbers(kind, count, what)

    def _numbers(self, kind: int, count: int, what: str) -> list[Any]:
        if kind not in SCALARS:
            raise self.error(f"{what}: unknown value type {kind}")
        dtype = np.dtype(SCALARS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize, what), dtype=dtype)
        if kind != BOOL:
            return list(values.tolist())
        if values.size and values.max() > 1:
            raise self.error(f"{what}: a truth value of {values.max()}")
        return list(values.astype(bool).tolist())


def read_header(file: IO[bytes], path: Path) -> Header:
    """The metadata and tensors of the GGUF file open as `file`; `path` is for messages.

    Raises RunError naming the file and the key or tensor that is wrong.
    """
    cursor = _Cursor(file, path)
    _check_version(cursor)
    tensors, pairs = cursor.u64("number of tensors"), cursor.u64("number of keys")
    if tensors > _MAX_TENSORS or pairs > _MAX_PAIRS:
        raise cursor.error(f"it claims {tensors} tensors and {pairs} keys")
    metadata: dict[str, Any] = {}
    for number in range(pairs):
        key = cursor.text(f"key number {number}", _MAX_KEY)
        if key in metadata:
            raise cursor.error(f"key {quoted(key)} is there twice")
        place = f"key {quoted(key)}"
        metadata[key] = cursor.value(cursor.u32(place), place)
    alignment = _alignment(cursor, metadata)
    rows = [_tensor(cursor, number) for number in range(tensors)]
    start = -(-cursor.offset // alignment) * alignment
    return Header(metadata, _lay_out(cursor, rows, start, alignment))


def _check_version(cursor: _Cursor) -> None:
    if cursor.size < 4 or cursor.take(4, "magic") != MAGIC:
        raise RunError(f"{cursor.path}: not a GGUF file (it does not begin with 'GGUF')")
    version = cursor.u32("version")
    if version not in (2, 3):
        if version & 0xFFFF == 0 and version:
            raise RunError(
                f"{cursor.path}: a big-endian GGUF file; convert it with the gguf package: "
                "gguf-convert-endian FILE little"
            )
        raise RunError(
            f"{cursor.path}: GGUF version {version}; versions 2 and 3 are read: convert the model again"
        )


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if type(value) is not int or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error(f"key 'general.alignment': {value!r} is not a power of two up to {_MAX_ALIGNMENT}")
    return value


def _tensor(cursor: _Cursor, number: int) -> TensorInfo:
    """One row of the list; its `start` is still counted from where the data begin."""
    name = cursor.text(f"tensor number {number}", _MAX_KEY)
    place = f"tensor {quoted(name)}"
    count = cursor.u32(place)
    if not 0 < count <= _MAX_DIMS:
        raise cursor.error(f"{place}: {count} dimensions")
    dims = [cursor.u64(place) for _ in range(count)]
    number_of_type, start = cursor.u32(place), cursor.u64(place)
    if number_of_type not in TYPES:
        raise cursor.error(f"{place}: unknown quantization type {number_of_type}")
    kind = TYPES[number_of_type]
    elements = 1
    for dim in dims:
        elements *= dim
    if not 0 < elements <= cursor.size * kind.block:
        raise cursor.error(f"{place}: shape {tuple(reversed(dims))} in a file of {cursor.size} bytes")
    if dims[0] % kind.block:
        raise cursor.error(
            f"{place}: rows of {dims[0]} are no whole number of {kind.name}'s {kind.block}-blocks"
        )
    return TensorInfo(
        cursor.path, name, tuple(reversed(dims)), kind, start, elements // kind.block * kind.size
    )


def _lay_out(cursor: _Cursor, rows: list[TensorInfo], start: int, alignment: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    free, before = 0, ""
    for row in sorted(rows, key=lambda row: row.start):
        place = f"tensor {quoted(row.name)}"
        if row.start % alignment:
            raise cursor.error(f"{place}: its offset {row.start} is no multiple of {alignment}")
        if row.start < free:
            raise cursor.error(f"{place}: it overlaps with {quoted(before)}")
        free, before = row.start + row.size, row.name
        if start + free > cursor.size:
            raise cursor.error(
                f"{place}: it ends at byte {start + free} of a file of {cursor.size}: truncated"
            )
        if row.name in tensors:
            raise cursor.error(f"{place} is there twice")
        tensors[row.name] = replace(row, start=start + row.start)
    return {row.name: tensors[row.name] for row in rows}
