"""Reads the wire format of protocol buffers: enough for SentencePiece's .model, safe against hostile lengths.

    for number, value in fields(memoryview(data), "spiece.model"):
        ...                     # value: int (varint), bytes-like (length-delimited), float (32 bit)

A damaged message gives a DataError that says at which byte; nothing is ever allocated by a length that was only read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from nalanda.base.errors import DataError

Value = int | float | memoryview
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


def fields(data: memoryview, origin: str) -> Iterator[tuple[int, Value]]:
    """(field number, value) of a message, in order. Raises DataError where the bytes are no message."""
    place = 0
    while place < len(data):
        start = place
        key, place = _varint(data, place, origin)
        number, kind = key >> 3, key & 7
        value: Value
        if kind == _VARINT:
            value, place = _varint(data, place, origin)
        elif kind == _BYTES:
            size, place = _varint(data, place, origin)
            value, place = _take(data, place, size, origin), place + size
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            value = struct.unpack("<f" if size == 4 else "<d", _take(data, place, size, origin))[0]
            place += size
        else:
            raise DataError(f"{origin}: damaged, byte {start} begins no field of a protocol buffer")
        if number == 0:
            raise DataError(f"{origin}: damaged, byte {start} begins no field of a protocol buffer")
        yield number, value


def _varint(data: memoryview, place: int, origin: str) -> tuple[int, int]:
    value = 0
    for shift in range(_LONGEST_VARINT):
        if place >= len(data):
            raise DataError(f"{origin}: damaged, it ends inside a number at byte {place}")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, place
    raise DataError(f"{origin}: damaged, a number longer than {_LONGEST_VARINT} bytes at byte {place}")


def _take(data: memoryview, place: int, size: int, origin: str) -> memoryview:
    if size > len(data) - place:
        raise DataError(
            f"{origin}: damaged, {size} bytes announced at byte {place} where {len(data) - place} are left"
        )
    return data[place : place + size]
