"""One safetensors file: a header that is believed only after every check, and tensors read straight to their place.

header = read_header(path)                      # header.tensors: {key: dtype, shape, place}; RunError if unsound
fill(path, header, "embed.weight", out)         # out: any strides, any dtype; from file to memory, nothing mapped
write_file(path, entries, {"format": "pt"})     # byte for byte what the format's own library writes

The layout: 8 bytes (little-endian length of the header), the header (JSON), the tensors' bytes without gaps. Files
are read, not mapped: a mapped page counts in the process's memory as long as the map lives, so a model would be
there twice while it is loaded.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nalanda.base.errors import RunError

# In the order in which the format's own library writes them (largest alignment first, then as here); a dtype that
# this torch lacks is left out.
_NAMES = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, ours) for name, ours in _NAMES.items() if hasattr(torch, ours)
}
_STORED_AS = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(DTYPES.values())}

MAX_HEADER = 100_000_000  # bytes; the format's own limit
_MAX_ENTRY = 4096  # characters that describe one tensor
_MAX_AXES = 64  # torch's own limit for most operations
_CHUNK = 1 << 20  # bytes that are in memory twice while a dtype or strides change; a size that caches hold

_STRING = r'"[^"\\\x00-\x1f]*+(?:\\["\\/bfnrtu][^"\\\x00-\x1f]*+)*+"'
_GAP = r"[ \t\r\n]*+"
_PAIR = rf"{_STRING}{_GAP}:{_GAP}{_STRING}{_GAP}"
# The members of the header's object are read in turn: a header of 100 MB that is not what it should be is refused
# at its first wrong member, before it has become a gigabyte of Python objects.
_TENSOR = re.compile(rf"{_GAP}({_STRING}){_GAP}:{_GAP}(\{{[^{{}}]*+\}}){_GAP}([,}}])")
_METADATA = re.compile(
    rf'{_GAP}"__metadata__"{_GAP}:{_GAP}\{{{_GAP}(?:{_PAIR}(?:,{_GAP}{_PAIR})*+)?+\}}{_GAP}([,}}])'
)
_BEGIN = re.compile(rf"{_GAP}\{{")
_EMPTY = re.compile(rf"{_GAP}\{{{_GAP}\}}{_GAP}")


class Stored(NamedTuple):
    """Where one tensor is: its dtype, its shape, and the bytes of the file, from `start` to `end`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file holds: its tensors, in the order of its header, and its size in bytes."""

    tensors: Mapping[str, Stored]
    size: int


@dataclass(frozen=True)
class Entry:
    """One tensor to be written; `make` gives it, with that shape and dtype, when its turn comes."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


class Writable(Protocol):
    """What bytes are written to."""

    def write(self, data: Any, /) -> Any:
        """Writes all of `data`."""


def quoted(key: str) -> str:
    """A tensor's name for a message: on one line, and of bearable length."""
    return repr(key if len(key) <= 200 else key[:200] + "...")


# Reading


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a regular file (a named pipe would wait for ever). Raises RunError for what cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise RunError(f"{path}: not a file")
        yield file
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(file)


def _read(file: int, path: Path, start: int, into: memoryview) -> None:
    """Fills `into` with the file's bytes from `start` on."""
    done = 0
    while done < len(into):
        got = os.preadv(file, [into[done:]], start + done)
        if got == 0:
            raise RunError(f"{path}: ends at byte {start + done}: it was cut short while it was read")
        done += got


def read_header(path: Path) -> Header:
    """The tensors of the file at `path`, with every byte accounted for: none missing, shared or left over.

    Raises RunError naming the file, and the tensor, where that is not so.
    """
    with _opened(path) as file:
        size = os.fstat(file).st_size
        prefix = bytearray(8)
        if size < 8:
            raise RunError(
                f"{path}: {size} bytes, too short for a safetensors file; copy or download it again"
            )
        _read(file, path, 0, memoryview(prefix))
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER:
            raise RunError(
                f"{path}: damaged, or not a safetensors file: its header would have {length} bytes, "
                f"more than the {MAX_HEADER} allowed"
            )
        base = 8 + length
        if base > size:
            raise RunError(
                f"{path}: truncated, or not a safetensors file: its header alone would end at byte {base}, "
                f"the file has {size}; copy or download it again"
            )
        raw = bytearray(length)
        _read(file, path, 8, memoryview(raw))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, f"its header is not UTF-8 (byte {8 + error.start})") from None
    tensors: dict[str, Stored] = {}
    for key, values in _members(path, text):
        if key in tensors:
            raise _damaged(path, f"weight {quoted(key)} stands twice in its header")
        tensors[key] = _stored(path, key, values, base)
    _check_tiling(path, tensors, base, size)
    return Header(tensors, size)


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path}: damaged: {what}; copy or download it again")


def _members(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Names and descriptions of the header's tensors. Its metadata is checked and passed over: nothing needs it."""
    if (found := _BEGIN.match(text)) is None:
        raise _damaged(path, "its header is not a JSON object")
    if _EMPTY.fullmatch(text):
        return
    place, last, metadata = found.end(), ",", 0
    while last == ",":
        if (found := _METADATA.match(text, place)) is not None:
            metadata += 1
            if metadata > 1:
                raise _damaged(path, "__metadata__ stands twice in its header")
        elif (found := _TENSOR.match(text, place)) is not None:
            yield _member(path, found)
        else:
            raise _damaged(path, f"its header is not what it should be after character {place}")
        place, last = found.end(), found[found.lastindex or 0]
    if text[place:].strip(" \t\r\n"):
        raise _damaged(path, f"its header goes on after its end at character {place}")


def _member(path: Path, found: re.Match[str]) -> tuple[str, Any]:
    if len(found[1]) + len(found[2]) > _MAX_ENTRY:
        raise _damaged(path, f"its header describes weight {quoted(found[1])} at absurd length")
    try:
        key = json.loads(found[1])
        key.encode("utf-8")  # half of a surrogate pair is no text
        pairs = json.loads(found[2], object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise _damaged(path, f"its header describes weight {quoted(found[1])} in broken JSON") from None
    if key == "__metadata__":
        raise _damaged(path, "__metadata__ in its header is not a table of texts")
    values = dict(pairs)
    if len(values) != len(pairs) or values.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"weight {quoted(key)} is not described by dtype, shape and data_offsets")
    return key, values


def _stored(path: Path, key: str, values: Any, base: int) -> Stored:
    """One tensor's place, from its description; `base` is where the header ends."""
    name, shape, offsets = values["dtype"], values["shape"], values["data_offsets"]
    if not isinstance(name, str) or name not in DTYPES:
        raise RunError(f"{path}: weight {quoted(key)} has dtype {quoted(str(name))}, which is not known here")
    if not _sizes(shape) or len(shape) > _MAX_AXES:
        raise _damaged(path, f"weight {quoted(key)} has shape {quoted(str(shape))}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"weight {quoted(key)} has data_offsets {quoted(str(offsets))}")
    dtype = DTYPES[name]
    # An axis of 0 must not hide that the others are absurd: strides would overflow.
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
        raise _damaged(path, f"weight {quoted(key)} has shape {shape}, larger than any memory")
    need, have = math.prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if need != have:
        raise _damaged(
            path, f"weight {quoted(key)} has {have} bytes, its shape {shape} in {name} takes {need}"
        )
    return Stored(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)


def _check_tiling(path: Path, tensors: Mapping[str, Stored], base: int, size: int) -> None:
    """Each byte behind the header belongs to one tensor."""
    end, before = base, "the header"
    for key, stored in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if stored.end > size:
            raise RunError(
                f"{path}: truncated: weight {quoted(key)} ends at byte {stored.end}, the file at {size}; "
                "copy or download it again"
            )
        if stored.start != end:
            how = "overlaps with" if stored.start < end else "leaves a gap after"
            raise _damaged(path, f"weight {quoted(key)} {how} {before}")
        end, before = stored.end, f"weight {quoted(key)}"
    if end != size:
        raise _damaged(path, f"{size - end} bytes follow after {before}, which belong to no tensor")


def fill(path: Path, header: Header, key: str, out: Tensor) -> None:
    """Reads tensor `key` into `out`, which has its shape and lies on the CPU; its dtype is converted to out's.

    With out's dtype the same and its elements adjacent, the bytes go straight there; else by way of a small buffer.
    Raises RunError where the file has changed since its header was read.
    """
    stored = header.tensors[key]
    with _opened(path) as file:
        if os.fstat(file).st_size != header.size:
            raise RunError(f"{path}: changed its size while it was read; start again")
        _fill(file, path, stored.start, stored.dtype, out.detach())


def _fill(file: int, path: Path, start: int, dtype: torch.dtype, out: Tensor) -> None:
    size = out.numel() * dtype.itemsize
    if size == 0:
        return
    if out.dtype == dtype and out.is_contiguous():
        _read(file, path, start, _memory(out))
    elif size <= _CHUNK:
        chunk = torch.empty(out.shape, dtype=dtype)
        _read(file, path, start, _memory(chunk))
        out.copy_(chunk)
    else:
        for part in _parts(out, dtype.itemsize):
            _fill(file, path, start, dtype, part)
            start += part.numel() * dtype.itemsize


def _parts(tensor: Tensor, itemsize: int) -> Iterator[Tensor]:
    """`tensor`, of more than a chunk, in the order of its elements in at least two pieces; most are a chunk."""
    if tensor.is_contiguous():
        tensor = tensor.view(-1)
    while tensor.shape[0] == 1:
        tensor = tensor[0]
    rows = max(1, _CHUNK // (tensor[0].numel() * itemsize))
    yield from tensor.split(rows)


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, where they are."""
    # Not reshape: an axis of 1 may have any stride in a tensor that is contiguous.
    flat = tensor.as_strided((tensor.numel(),), (1,))
    array: Any = flat.view(torch.uint8).numpy()  # numpy's types do not say that it is a buffer
    return memoryview(array)


# Writing


def write_file(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> None:
    """Writes the tensors in the format's own order (largest dtype first, then by name), each when its turn comes.

    Raises RunError where a key comes twice, a dtype has no name in the format, or `make` gives something else than
    its entry says. A file that is not whole may be left then, or when the disk is full.
    """
    with path.open("wb") as file:
        write_stream(file, path, entries, metadata)


def write_stream(file: Writable, path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> None:
    """Writes what `write_file` does to a file that is open already; `path` is for messages."""
    ordered = _ordered(path, entries)
    file.write(_encode_header(ordered, metadata))
    for entry in ordered:
        tensor = entry.make().detach()
        if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
            raise RunError(
                f"{path}: weight {quoted(entry.key)} was announced as {entry.dtype} {entry.shape} "
                f"and came as {tensor.dtype} {tuple(tensor.shape)}"
            )
        _write(file, tensor)


def _ordered(path: Path, entries: Iterable[Entry]) -> list[Entry]:
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.key in found or entry.key == "__metadata__":
            why = "is the format's own name" if entry.key == "__metadata__" else "comes twice"
            raise RunError(f"{path}: weight {quoted(entry.key)} {why}; no file can hold it")
        if entry.dtype not in _ORDER:
            raise RunError(
                f"{path}: weight {quoted(entry.key)} has dtype {entry.dtype}, which safetensors cannot hold"
            )
        found[entry.key] = entry
    return sorted(found.values(), key=lambda entry: (_ORDER[entry.dtype], entry.key))


def _encode_header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    values: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for entry in entries:
        values[entry.key] = {
            "dtype": _STORED_AS[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, start + entry.bytes],
        }
        start += entry.bytes
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(file: Writable, tensor: Tensor) -> None:
    """Writes a tensor's elements in their order; copies a little at a time where they are elsewhere or scattered."""
    if tensor.numel() == 0:
        return
    size = tensor.numel() * tensor.itemsize
    if tensor.is_contiguous() and tensor.device.type == "cpu":
        file.write(_memory(tensor.resolve_conj()))
    elif size <= _CHUNK:
        file.write(_memory(tensor.cpu().contiguous().resolve_conj()))
    else:
        for part in _parts(tensor, tensor.itemsize):
            _write(file, part)
