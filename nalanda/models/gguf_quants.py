"""The number formats of GGUF files: blocks of bytes to float32 and, for the ones that are written, back.

values = dequantize(raw, TYPES[12])       # Q4_K; flat float32, bit for bit what the gguf package gives
raw = quantize(values, TYPE_BY_NAME["Q8_0"])

A row of a tensor is cut into blocks of `block` numbers, each stored in `size` bytes: small integers, and one or two
scales that they share. The layouts below name the fields of a block; the k-quants (Q2_K ... Q6_K) cut 256 numbers
further into sub-blocks of 16 or 32, whose scales are themselves small integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nalanda.base.errors import RunError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_Block = npt.NDArray[np.void]


@dataclass(frozen=True)
class QuantType:
    """A number format: its number and name in the GGUF specification, numbers per block, bytes per block."""

    number: int
    name: str
    block: int
    size: int


TYPES: dict[int, QuantType] = {
    number: QuantType(number, name, block, size)
    for number, name, block, size in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}
TYPE_BY_NAME = {kind.name: kind for kind in TYPES.values()}

_HALF, _BYTE, _SIGNED = "<f2", "u1", "i1"
_LAYOUTS: dict[str, np.dtype[np.void]] = {
    name: np.dtype([(field, kind, (count,)) for field, kind, count in fields])
    for name, fields in {
        "Q4_0": [("d", _HALF, 1), ("q", _BYTE, 16)],
        "Q4_1": [("d", _HALF, 1), ("m", _HALF, 1), ("q", _BYTE, 16)],
        "Q5_0": [("d", _HALF, 1), ("high", _BYTE, 4), ("q", _BYTE, 16)],
        "Q5_1": [("d", _HALF, 1), ("m", _HALF, 1), ("high", _BYTE, 4), ("q", _BYTE, 16)],
        "Q8_0": [("d", _HALF, 1), ("q", _SIGNED, 32)],
        "Q2_K": [("scales", _BYTE, 16), ("q", _BYTE, 64), ("d", _HALF, 1), ("m", _HALF, 1)],
        "Q3_K": [("high", _BYTE, 32), ("q", _BYTE, 64), ("scales", _BYTE, 12), ("d", _HALF, 1)],
        "Q4_K": [("d", _HALF, 1), ("m", _HALF, 1), ("scales", _BYTE, 12), ("q", _BYTE, 128)],
        "Q5_K": [
            ("d", _HALF, 1),
            ("m", _HALF, 1),
            ("scales", _BYTE, 12),
            ("high", _BYTE, 32),
            ("q", _BYTE, 128),
        ],
        "Q6_K": [("q", _BYTE, 128), ("high", _BYTE, 64), ("scales", _SIGNED, 16), ("d", _HALF, 1)],
        "Q8_K": [("d", "<f4", 1), ("q", _SIGNED, 256), ("sums", "<i2", 16)],
        "IQ4_NL": [("d", _HALF, 1), ("q", _BYTE, 16)],
        "IQ4_XS": [("d", _HALF, 1), ("scales_high", "<u2", 1), ("scales", _BYTE, 4), ("q", _BYTE, 128)],
    }.items()
}
# The sixteen levels of IQ4_NL and IQ4_XS: denser near zero, where the weights are.
_LEVELS = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), dtype=np.float32
)


def _wide(values: npt.NDArray[np.generic]) -> Floats:
    return values.astype(np.float32)


def _unpack(packed_NK: Bytes, bits: int, group: int) -> Bytes:
    """Splits bytes into fields of `bits` bits. Of each run of `group` bytes come first all lowest fields, then all
    next ones, and so on: [N, K] -> [N, K * 8 / bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = packed_NK.reshape(len(packed_NK), -1, 1, group) >> shifts
    fields &= np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed_NK), -1)


def _bits(packed_NK: Bytes) -> Bytes:
    """The bits of each byte in order, shifted to the fifth place: [N, K] -> [N, 8 K]."""
    return np.unpackbits(packed_NK, axis=1, bitorder="little") << np.uint8(4)


def _scaled(scale_NS: Floats, values: Floats) -> Floats:
    """Multiplies each of S equal parts of a block by its scale: [N, S] and [N, B] -> [N, S, B / S]."""
    return scale_NS[:, :, None] * values.reshape(*scale_NS.shape, -1)


def _q4_0(block: _Block) -> Floats:
    return _wide(block["d"]) * (_wide(_unpack(block["q"], 4, 16)) - 8)


def _q4_1(block: _Block) -> Floats:
    return _wide(block["d"]) * _wide(_unpack(block["q"], 4, 16)) + _wide(block["m"])


def _q5_0(block: _Block) -> Floats:
    return _wide(block["d"]) * (_wide(_unpack(block["q"], 4, 16) | _bits(block["high"])) - 16)


def _q5_1(block: _Block) -> Floats:
    return _wide(block["d"]) * _wide(_unpack(block["q"], 4, 16) | _bits(block["high"])) + _wide(block["m"])


def _q8(block: _Block) -> Floats:
    return _wide(block["q"]) * _wide(block["d"])


def _q2_k(block: _Block) -> Floats:
    scale = _wide(block["d"]) * _wide(block["scales"] & 15)
    least = _wide(block["m"]) * _wide(block["scales"] >> 4)
    return _scaled(scale, _wide(_unpack(block["q"], 2, 32))) - least[:, :, None]


def _q3_k(block: _Block) -> Floats:
    # 16 scales of 6 bits: the low 4 in the first 8 bytes, the high 2 in the last 4.
    low, high = _unpack(block["scales"][:, :8], 4, 8), _unpack(block["scales"][:, 8:], 2, 4)
    scale = _wide(block["d"]) * (_wide(low | high << 4) - 32)
    # A cleared high bit means four less, not a set one four more.
    missing = _unpack(block["high"], 1, 32) ^ 1
    return _scaled(scale, _wide(_unpack(block["q"], 2, 32)) - _wide(missing << 2))


def _scales_and_minima(scales_NK: Bytes) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of 6 bits from 12 bytes: four of each whole in bytes 0-3 and 4-7, whose two top
    bits belong to the other four, with the low 4 bits in bytes 8-11."""
    first, second, rest = scales_NK[:, :4], scales_NK[:, 4:8], scales_NK[:, 8:]
    scales = np.concatenate((first & 63, rest & 15 | first >> 2 & 48), axis=1)
    minima = np.concatenate((second & 63, rest >> 4 | second >> 2 & 48), axis=1)
    return _wide(scales), _wide(minima)


def _q45_k(block: _Block, q: Bytes) -> Floats:
    scales, minima = _scales_and_minima(block["scales"])
    least = _wide(block["m"]) * minima
    return _scaled(_wide(block["d"]) * scales, _wide(q)) - least[:, :, None]


def _q4_k(block: _Block) -> Floats:
    return _q45_k(block, _unpack(block["q"], 4, 32))


def _q5_k(block: _Block) -> Floats:
    return _q45_k(block, _unpack(block["q"], 4, 32) | _unpack(block["high"], 1, 32) << np.uint8(4))


def _q6_k(block: _Block) -> Floats:
    q = _unpack(block["q"], 4, 64) | _unpack(block["high"], 2, 32) << np.uint8(4)
    return _scaled(_wide(block["d"]) * _wide(block["scales"]), _wide(q) - 32)


def _iq4_nl(block: _Block) -> Floats:
    return _wide(block["d"]) * _LEVELS[_unpack(block["q"], 4, 16)]


def _iq4_xs(block: _Block) -> Floats:
    low = block["scales"][:, :, None] >> np.array((0, 4), dtype=np.uint8) & 15
    high = block["scales_high"] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scale = _wide(block["d"]) * (_wide(low.reshape(len(low), 8) | high << 4) - 32)
    return _scaled(scale, _LEVELS[_unpack(block["q"], 4, 16)])


_DEQUANTIZE: dict[str, Callable[[_Block], Floats]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q8_K": _q8,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


def dequantize(raw: bytes | Bytes, kind: QuantType) -> Floats:
    """The numbers in `raw`, a whole count of blocks of `kind`, flat, as float32.

    Formats that are rare are left to the gguf package. Raises RunError where it is not installed or knows no better.
    """
    if kind.name in _PLAIN:
        return np.frombuffer(raw, dtype=_PLAIN[kind.name]).astype(np.float32)
    if kind.name == "BF16":
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    if kind.name not in _DEQUANTIZE:
        return _dequantize_rare(raw, kind)
    # A scale of infinity makes NaN of a zero: the file says so, and numpy need not repeat it.
    with np.errstate(all="ignore"):
        return _DEQUANTIZE[kind.name](np.frombuffer(raw, dtype=_LAYOUTS[kind.name])).reshape(-1)


def _dequantize_rare(raw: bytes | Bytes, kind: QuantType) -> Floats:
    try:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize as theirs
    except ImportError:
        raise RunError(
            f"weights of type {kind.name} need the gguf package: pip install 'nalanda[gguf]'"
        ) from None
    try:
        with np.errstate(all="ignore"):
            values = theirs(np.frombuffer(raw, dtype=np.uint8), GGMLQuantizationType(kind.number))
    except (NotImplementedError, ValueError):
        raise RunError(f"weights of type {kind.name} cannot be read: quantize the model otherwise") from None
    return np.asarray(values, dtype=np.float32).reshape(-1)


def quantize(values: Floats, kind: QuantType) -> bytes:
    """The bytes of `values` (float32, rows of whole blocks) as F32, F16 or Q8_0; the last bit for bit as llama.cpp.

    Raises ValueError where a value (F16) or the scale of a block (Q8_0) is not a finite number of half precision.
    """
    flat = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    if kind.name == "F32":
        return flat.tobytes()
    with np.errstate(over="ignore", invalid="ignore"):
        if kind.name == "F16":
            scale = half = flat.astype("<f2")
        elif kind.name == "Q8_0":
            scale, half = _q8_0(flat)
        else:
            raise ValueError(f"weights of type {kind.name} are not written")
    if not np.isfinite(scale).all():
        raise ValueError(f"a value is NaN, infinite or too large for {kind.name}")
    return half.tobytes()


def _q8_0(flat: Floats) -> tuple[npt.NDArray[np.float16], _Block]:
    values = flat.reshape(-1, 32)
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    # The reciprocal of a smaller scale is infinite, and in C the integers are then undefined: they are zero here.
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 2.0**-128)
    scaled = values * inverse
    size = np.abs(scaled)
    whole = np.floor(size)
    rounded = whole + (size - whole >= 0.5)  # halves go away from zero, as C's roundf
    block = np.empty(len(values), dtype=_LAYOUTS["Q8_0"])
    block["d"] = scale
    block["q"] = np.copysign(rounded, scaled)
    return block["d"], block
