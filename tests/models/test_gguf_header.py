"""Files that lie about themselves: one line that names file and key, at once, and no memory by claimed sizes."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nalanda.base.errors import RunError
from nalanda.models.gguf import open_gguf
from nalanda.models.gguf_header import read_header

HUGE = 2**60


def text(value: str, length: int | None = None) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def array(kind: int, count: int, raw: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + raw


def tensor(name: str = "t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    counts: tuple[int, int] | None = None,
    data: int = 64,
    start: bytes = b"GGUF" + struct.pack("<I", 3),
) -> bytes:
    head = start + struct.pack("<QQ", *(counts or (len(tensors), len(pairs)))) + b"".join((*pairs, *tensors))
    return head + bytes(-len(head) % 32) + bytes(data)


def parse(path: Path) -> Any:
    with path.open("rb") as opened:
        return read_header(opened, path)


BAD = {
    "empty": (b"", "not a GGUF file"),
    "another kind": (b"PK\3\4" + bytes(99), "not a GGUF file"),
    "version 1": (file(start=b"GGUF" + struct.pack("<I", 1)), "version 1; versions 2 and 3"),
    "big-endian": (file(start=b"GGUF" + struct.pack(">I", 3)), "big-endian"),
    "cut in the counts": (file()[:12], "number of tensors"),
    "tensors without end": (file(counts=(HUGE, 0)), f"claims {HUGE} tensors"),
    "keys without end": (file(counts=(0, HUGE)), f"{HUGE} keys"),
    "more keys than bytes": (file(counts=(0, 9000)), "key ''"),
    "key past the end": (file((text("k", 5000),)), "key number 0: 5000 bytes wanted"),
    "key of 2^60": (file((text("k", HUGE),)), f"key number 0: a length of {HUGE}"),
    "string past the end": (file((pair("k", 8, text("v", 9999)),)), "key 'k': 9999 bytes wanted"),
    "string of 2^63": (file((pair("k", 8, text("v", 2**63)),)), "key 'k': a length of"),
    "string not UTF-8": (file((pair("k", 8, struct.pack("<Q", 1) + b"\xff"),)), "key 'k': not UTF-8"),
    "unknown value type": (file((pair("k", 77, b""),)), "key 'k': unknown value type 77"),
    "array of 2^60 numbers": (file((pair("k", 9, array(4, HUGE)),)), f"key 'k': a list of {HUGE}"),
    "array past the end": (file((pair("k", 9, array(4, 5000)),)), "key 'k': 20000 bytes wanted"),
    "array of 2^60 strings": (file((pair("k", 9, array(8, HUGE)),)), f"key 'k': a list of {HUGE}"),
    "strings past the end": (file((pair("k", 9, array(8, 500)),)), "key 'k': 4000 bytes wanted"),
    "string of an array past it": (
        file((pair("k", 9, array(8, 1, text("v", 2**62))),)),
        "key 'k': .* bytes wanted",
    ),
    "nested arrays": (
        file((pair("k", 9, array(9, 1, array(9, 1, array(9, 1)))),)),
        "key 'k': an array of arrays",
    ),
    "unknown type of array": (file((pair("k", 9, array(13, 1)),)), "key 'k': unknown value type 13"),
    "truth of 2": (file((pair("k", 7, b"\2"),)), "key 'k': a truth value of 2"),
    "key twice": (file((pair("k", 7, b"\1"),) * 2), "key 'k' is there twice"),
    "alignment 3": (file((pair("general.alignment", 4, struct.pack("<I", 3)),)), "general.alignment"),
    "alignment 0": (file((pair("general.alignment", 4, bytes(4)),)), "general.alignment"),
    "alignment a word": (file((pair("general.alignment", 8, text("32")),)), "general.alignment"),
    "alignment 2^31": (file((pair("general.alignment", 4, struct.pack("<I", 2**31)),)), "general.alignment"),
    "tensor twice": (
        file((), (tensor("t", (4,), 0, 0), tensor("t", (4,), 0, 32))),
        "tensor 't' is there twice",
    ),
    "overlap": (file((), (tensor("a", (16,)), tensor("b", (4,), 0, 32))), "'b': it overlaps with 'a'"),
    "unaligned": (file((), (tensor("t", (4,), 0, 4),)), "offset 4 is no multiple of 32"),
    "offset past the end": (file((), (tensor("t", (4,), 0, 2**40),)), "truncated"),
    "offset 2^64-32": (file((), (tensor("t", (4,), 0, 2**64 - 32),)), "truncated"),
    "cut": (file((), (tensor("t", (64,)),))[:-9], "truncated"),
    "unknown quantization": (file((), (tensor("t", (4,), 99),)), "unknown quantization type 99"),
    "retired quantization": (file((), (tensor("t", (32,), 4),)), "unknown quantization type 4"),
    "half a block": (file((), (tensor("t", (33,), 8),)), "no whole number of Q8_0"),
    "no dimensions": (file((), (tensor("t", ()),)), "0 dimensions"),
    "five dimensions": (file((), (tensor("t", (1,) * 5),)), "5 dimensions"),
    "dimension 0": (file((), (tensor("t", (0,)),)), "shape"),
    "dimensions overflow": (file((), (tensor("t", (2**32, 2**32)),)), "shape"),
    "dimensions overflow twice": (file((), (tensor("t", (2**63, 2, 4)),)), "shape"),
    "a name of several lines": (file((), (tensor("a\nb" * 999, (0,)),)), r"tensor 'a\\nba"),
}


@pytest.mark.parametrize("name", BAD)
def test_lies_are_said_in_one_line(name: str, tmp_path: Path) -> None:
    raw, message = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(RunError, match=message) as caught:
        parse(path)
    assert time.perf_counter() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "pairs",
    [
        (pair("k", 9, array(8, 2**21)),),
        (pair("k", 9, array(5, 2**21)),),
        (pair("k", 9, array(0, 2**21 + 1)),),
        (pair("k", 8, struct.pack("<Q", 2**29)),),
    ],
)
def test_sparse_file_is_no_excuse(pairs: tuple[bytes, ...], tmp_path: Path) -> None:
    """A terabyte that is not there makes every length plausible."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(file(pairs, counts=(0, 999)))
    os.truncate(path, 2**40)
    began = time.perf_counter()
    with pytest.raises(RunError):
        parse(path)
    assert time.perf_counter() - began < 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_a_run_error(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(
        file(
            (
                pair("general.architecture", 8, text("llama")),
                pair("a", 9, array(8, 2, text("x") + text("yy"))),
            ),
            (tensor("token_embd.weight", (4, 2)), tensor("b", (32,), 8, 32)),
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, 220))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with pytest.raises(RunError, match=r"damaged\.gguf"):
        open_gguf(path)  # without a layer it cannot be a model even where the damage is harmless


def test_good_header(tmp_path: Path) -> None:
    """Against the gguf package's writer: every type of value, and an alignment of one's own."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "good.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "float32": 0.5,
        "bool": True,
        "string": "कमल\n",
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float64": 0.1,
    }
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(kind, value)
    lists = {"words": ["क", "", "b" * 300], "numbers": [1, -2], "parts": [0.5, 2.0], "truths": [True, False]}
    for key, value in lists.items():
        writer.add_array(key, value)
    writer.add_custom_alignment(64)
    first = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer.add_tensor("first", first)
    writer.add_tensor("second", np.ones((5, 1, 2), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = parse(path)
    assert header.metadata == {
        "general.architecture": "llama",
        **values,
        **lists,
        "general.alignment": 64,
    }
    assert list(header.tensors) == ["first", "second"]
    info = header.tensors["first"]
    assert (info.shape, info.kind.name, info.start % 64) == ((2, 3), "F32", 0)
    assert path.read_bytes()[info.start : info.start + info.size] == first.tobytes()
    assert (header.tensors["second"].shape, header.tensors["second"].kind.name) == ((5, 1, 2), "F16")
