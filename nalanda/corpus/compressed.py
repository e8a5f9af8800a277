"""Bytes and lines of plain, .gz and .zst files, in bounded memory, as far as a damaged file can be read.

for chunk in chunks(path): ...               # raises Break after the last good byte of a damaged file
for line in lines(path, quarantine): ...     # Line(row, offset, data); what is damaged is in the quarantine
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

from nalanda.base.errors import DataError
from nalanda.corpus.quarantine import Quarantine

_CHUNK = 1 << 18
_PIECE = (
    1 << 8
)  # of a .zst: 64 blocks at most, so 8 MiB, is what it can unpack to, and what damage takes along
_SAMPLE = 1 << 16
MAX_ROW_BYTES = 1 << 24


class Break(Exception):
    """A file that cannot be read any further, though it has not ended as its format says it must."""


class Line(NamedTuple):
    """One line without its end: number from 1, offset in bytes of the (unpacked) file."""

    row: int
    offset: int
    data: bytes


def chunks(path: Path) -> Iterator[bytes]:
    """The (unpacked) bytes of `path`. Raises Break at damage, DataError where the file cannot be opened."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    with file:
        packed = iter(lambda: file.read(_CHUNK), b"")
        if path.suffix == ".gz":
            yield from _gunzip(packed)
        elif path.suffix == ".zst":
            yield from _unzstd(packed)
        else:
            yield from packed


def _gunzip(packed: Iterator[bytes]) -> Iterator[bytes]:
    """All members of a gzip file. Output is drawn in bounded pieces, so a bomb stays small in memory."""
    stream, started = zlib.decompressobj(wbits=31), False
    for data in packed:
        while data:
            if stream.eof:
                data = data.lstrip(b"\0")  # some writers pad the file's end with zeros
                if data:
                    stream, started = zlib.decompressobj(wbits=31), False
                continue
            started = True
            before = stream.copy()
            try:
                out = stream.decompress(data, _CHUNK)
            except zlib.error as error:
                yield _salvage(before, data)
                raise Break(f"damaged gzip data ({str(error).rpartition(': ')[2]})") from None
            data = stream.unused_data if stream.eof else stream.unconsumed_tail
            if out:
                yield out
    yield stream.flush() if started and not stream.eof else b""  # at most a window's worth is still inside
    if not stream.eof:
        raise Break("the gzip file ends early: half-written or cut off")


def _salvage(stream: zlib._Decompress, data: bytes) -> bytes:
    """What comes out of `data` before the byte that breaks it: one byte at a time."""
    out = bytearray()
    for position in range(len(data)):
        try:
            out += stream.decompress(data[position : position + 1])
        except zlib.error:
            break
    return bytes(out)


def _unzstd(packed: Iterator[bytes]) -> Iterator[bytes]:
    stream = zstandard.ZstdDecompressor().decompressobj()
    for data in packed:
        while data:
            if stream.eof:
                stream = zstandard.ZstdDecompressor().decompressobj()
            piece, data = data[:_PIECE], data[_PIECE:]
            try:
                out = stream.decompress(piece)
            except zstandard.ZstdError as error:
                raise Break(f"damaged zstd data ({str(error).rpartition(': ')[2]})") from None
            if stream.eof:
                data = stream.unused_data + data
            if out:
                yield out
    if not stream.eof:
        raise Break("the zstd file ends early: half-written or cut off")


def lines(
    path: Path,
    quarantine: Quarantine,
    language: str = "",
    max_row_bytes: int = MAX_ROW_BYTES,
    counted: bool = True,
) -> Iterator[Line]:
    """The lines of `path`. Too long ones and a break are quarantined.

    A line that ends in CR LF loses both; a UTF-8 byte order mark at the start of the file is dropped. Each line
    is counted as a row met, unless the caller makes rows of several lines and counts them (`counted=False`).
    """
    row, start, held, length = 0, 0, [b""], 0  # the open line: its offset, bytes kept, bytes in all

    def close(end: int) -> Iterator[Line]:
        data = b"".join(held)
        if counted or length > max_row_bytes:
            quarantine.saw()
        if length > max_row_bytes:
            reason = f"a row of {length:,} bytes, more than max_row_bytes = {max_row_bytes:,}"
            quarantine.add(path, reason, row=row, offset=start, data=data, length=length, language=language)
        else:
            if row == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            yield Line(row, start, data.removesuffix(b"\r"))

    position, broken = 0, ""
    source = chunks(path)
    while True:
        try:
            chunk = next(source)
        except StopIteration:
            break
        except Break as error:
            broken = str(error)
            break
        parts = chunk.split(b"\n")
        for index, part in enumerate(parts):
            if index:
                row += 1
                yield from close(position)
                start, held, length = position, [], 0
            length += len(part)
            position += len(part) + (index < len(parts) - 1)
            if length <= max_row_bytes:
                held.append(part)
            elif len(held) != 1 or len(held[0]) != _SAMPLE:  # too long: only its beginning is kept
                held = [b"".join([*held, part])[:_SAMPLE]]
    if broken:
        data = b"".join(held)
        quarantine.broke(path, broken, row=row + 1, offset=start, data=data, language=language)
    elif length:
        row += 1
        yield from close(position)


def whole(
    path: Path, quarantine: Quarantine, language: str = "", max_bytes: int = 1 << 28
) -> tuple[bytes, bool]:
    """The bytes of a file that is parsed as one, and whether that is all of it; a break is quarantined."""
    held: list[bytes] = []
    length = 0
    try:
        for chunk in chunks(path):
            if length + len(chunk) > max_bytes:
                raise Break(f"more than {max_bytes:,} bytes in a file that is read as one")
            length += len(chunk)
            held.append(chunk)
    except Break as error:
        quarantine.broke(path, str(error), row=None, offset=length, data=b"", language=language)
        return b"".join(held), False
    return b"".join(held), True


def extension(path: Path) -> str:
    """The file's own extension, below `.gz` or `.zst`, with its dot, in lower case."""
    return (Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix).lower()
