"""A safetensors file of ours is byte for byte the format's; one that is not sound is refused in one line."""

from __future__ import annotations

import json
import os
import random
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import deserialize
from safetensors.torch import load_file, save
from torch import Tensor

from nalanda.base.errors import RunError
from nalanda.models import safetensors_file
from nalanda.models.safetensors_file import DTYPES, Entry, fill, read_header, write_file


def some(dtype: torch.dtype, *shape: int) -> Tensor:
    """Random bits, which in most float dtypes are some NaNs too: equality is of bits."""
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, dtype=torch.bool)
    return torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8).view(dtype).reshape(shape)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and bits(one) == bits(two)


def entries(tensors: Mapping[str, Tensor]) -> list[Entry]:
    return [Entry(k, tuple(v.shape), v.dtype, lambda v=v: v) for k, v in tensors.items()]  # type: ignore[misc]


def every_dtype() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {f"t.{name}": some(dtype, 3, 5) for name, dtype in DTYPES.items()}
    return tensors | {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
        "a": some(torch.bfloat16, 7),
        'नाम "q" \\ \n\x1f\u2028': some(torch.int8, 3),
        "Z": torch.arange(6.0),
    }


def read(path: Path, key: str, out: Tensor | None = None) -> Tensor:
    header = read_header(path)
    if out is None:
        out = torch.empty(header.tensors[key].shape, dtype=header.tensors[key].dtype)
    fill(path, header, key, out)
    return out


# Reading and writing


def test_a_file_is_byte_for_byte_that_of_the_formats_own_library(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = every_dtype()
    for metadata in ({"format": "pt"}, {}):
        write_file(path, entries(tensors), metadata)
        assert path.read_bytes() == save(tensors, metadata or None)
    assert set(read_header(path).tensors) == set(tensors)
    for key, value in tensors.items():
        assert same(read(path, key), value)


@pytest.mark.parametrize("chunk", [8, 48, 1 << 20])
def test_out_may_have_any_dtype_and_strides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(safetensors_file, "_CHUNK", chunk)
    torch.manual_seed(1)
    tensors = {
        "x": torch.randn(6, 5, 2),
        "half": torch.randn(6, 5).half(),
        "one": torch.randn(1, 1, 40),
        "fp8": torch.randn(8, 4).to(torch.float8_e4m3fn),
        "count": torch.tensor(7),
    }
    path = tmp_path / "model.safetensors"
    write_file(path, entries(tensors), {})
    for key, value in tensors.items():
        for dtype in (value.dtype, torch.float32, torch.bfloat16, torch.float64):
            for make in (
                lambda v, d: torch.empty(v.shape, dtype=d),
                lambda v, d: torch.empty(v.shape[::-1], dtype=d).permute(
                    tuple(range(v.dim()))[::-1]
                ),  # Conv1D to Linear
                lambda v, d: torch.empty(*v.shape, 3, dtype=d)[..., 1],
                lambda v, d: torch.empty(3, *v.shape, dtype=d)[1],
            ):
                out = make(value, dtype)
                assert same(read(path, key, out), value.to(dtype))
    fused = torch.nn.Parameter(torch.zeros(18, 5))
    read(path, "half", fused[6:12])
    assert torch.equal(fused[6:12], tensors["half"].float())
    assert not fused[:6].any()
    assert not fused[12:].any()


@pytest.mark.parametrize("chunk", [8, 1 << 20])
def test_scattered_tensors_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(safetensors_file, "_CHUNK", chunk)
    tensors = {
        "t": torch.randn(4, 6).t(),
        "s": torch.randn(4, 6)[:, ::2],
        "e": torch.randn(1, 3).expand(5, 3),
        "p": torch.nn.Parameter(torch.randn(3, 1, 2).transpose(0, 2)),
        "c": torch.randn(3, dtype=torch.complex64).conj(),
    }
    write_file(tmp_path / "model.safetensors", entries(tensors), {})
    stored = load_file(tmp_path / "model.safetensors")
    for key, value in tensors.items():
        assert torch.equal(stored[key], value.resolve_conj())


# Files that are not sound


def sound() -> bytes:
    return save(
        {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, {"format": "pt"}
    )


def with_header(header: Any, data: bytes = b"\0" * 32) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def one(**changes: Any) -> bytes:
    return with_header({"a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32], **changes}})


def two(first: tuple[int, int], second: tuple[int, int], dtype: str = "U8") -> bytes:
    rows = {"a": first, "b": second}
    return with_header(
        {k: {"dtype": dtype, "shape": [e - s], "data_offsets": [s, e]} for k, (s, e) in rows.items()}
    )


GOOD = '"a":{"dtype":"U8","shape":[32],"data_offsets":[0,32]}'
UNSOUND: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes, too short"),
    "seven bytes": (b"\0" * 7, "7 bytes, too short"),
    "no header": (b"\0" * 8, "not a JSON object"),
    "header past the end": (sound()[:60], "truncated.*its header alone would end at byte"),
    "header of exabytes": (b"\xff" * 100, "more than the 100000000 allowed"),
    "header of 100 MB": ((100_000_001).to_bytes(8, "little") + b"{}", "more than the 100000000 allowed"),
    "not UTF-8": (with_header(b'{"\xff\xfe":1}'), r"not UTF-8 \(byte 10\)"),
    "not JSON": (with_header(b"{" + b"a" * 20), "its header is not what it should be after character 1"),
    "a list": (with_header(b"[]"), "not a JSON object"),
    "no end": (with_header(f"{{{GOOD}".encode()), "not what it should be"),
    "a comma too many": (with_header(f"{{{GOOD},}}".encode()), "not what it should be after character 55"),
    "more behind its end": (with_header(f"{{{GOOD}}} 1".encode()), "goes on after its end"),
    "deep": (with_header(b'{"a":' + b"[" * 100_000), "not what it should be"),
    "deep within": (with_header(b'{"a":{"dtype":' + b"[" * 4000 + b"}}"), "broken JSON"),
    "long within": (with_header(b'{"a":{"dtype":' + b"1," * 10**6 + b"}}"), "absurd length"),
    "huge number": (with_header(b'{"a":{"dtype":' + b"1" * 4050 + b"}}"), "not described by"),
    "half a surrogate": (with_header(GOOD.replace("a", r"\ud800", 1).join("{}").encode()), "broken JSON"),
    "a key twice": (with_header(f"{{{GOOD},{GOOD}}}".encode()), "weight 'a' stands twice"),
    "metadata twice": (with_header(b'{"__metadata__":{},"__metadata__":{}}', b""), "stands twice"),
    "metadata of numbers": (with_header(b'{"__metadata__":{"a":1}}', b""), "__metadata__ in its header"),
    "a field twice": (with_header(b'{"a":{"dtype":"U8","dtype":"U8"}}'), "not described by dtype"),
    "a field too few": (with_header({"a": {"dtype": "U8", "shape": [32]}}), "not described by dtype"),
    "a field too many": (one(more=1), "weight 'a' is not described by"),
    "unknown dtype": (one(dtype="F33"), "weight 'a' has dtype 'F33', which is not known"),
    "dtype no text": (one(dtype=[]), "has dtype"),
    "negative axis": (one(shape=[-2, -4]), r"weight 'a' has shape '\[-2, -4\]'"),
    "fraction": (one(shape=[2.0, 4]), "has shape"),
    "truth": (one(shape=[True, 8]), "has shape"),
    "shape no list": (one(shape=8), "has shape '8'"),
    "too many axes": (one(shape=[1] * 70), "has shape"),
    "overflow": (one(shape=[2**62, 4]), "larger than any memory"),
    "overflow to zero": (one(shape=[2**32, 2**32, 0], data_offsets=[0, 0]), "larger than any memory"),
    "axis of 2^63": (one(shape=[2**63]), "has shape"),
    "shape too large": (one(shape=[2, 5]), r"has 32 bytes, its shape \[2, 5\] in F32 takes 40"),
    "negative offset": (one(data_offsets=[-32, 0]), "has data_offsets"),
    "offsets swapped": (one(data_offsets=[32, 0]), "has data_offsets"),
    "three offsets": (one(data_offsets=[0, 16, 32]), "has data_offsets"),
    "offset past the end": (one(shape=[3, 4], data_offsets=[0, 48]), "truncated: weight 'a' ends at byte"),
    "overlap": (two((0, 20), (16, 32)), "weight 'b' overlaps with weight 'a'"),
    "two in one place": (two((0, 32), (0, 32)), "weight 'b' overlaps with weight 'a'"),
    "a hole": (two((0, 16), (20, 32)), "weight 'b' leaves a gap after weight 'a'"),
    "a hole at the start": (two((4, 16), (16, 32)), "weight 'a' leaves a gap after the header"),
    "bytes left over": (two((0, 8), (8, 16)), "16 bytes follow after weight 'b'"),
    "nothing but bytes": (with_header({}), "32 bytes follow after the header"),
    "truncated": (sound()[:-1], "truncated: weight 'b' ends at byte"),
    "trailing": (sound() + b"\0", "1 bytes follow after weight 'b'"),
    "a line break in a name": (with_header(b'{"a\\nb":{}}'), r"weight 'a\\nb' is not described"),
}


def refused(path: Path, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(RunError, match=message) as caught:
        read_header(path)
    assert time.monotonic() - start < 2
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("case", UNSOUND)
def test_an_unsound_file_is_refused(tmp_path: Path, case: str) -> None:
    raw, message = UNSOUND[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    refused(path, message)


@pytest.mark.parametrize(
    ("header", "keys"),
    [
        ("{}", set()),
        ("{ }  ", set()),
        (r'{"__metadata__":{"config":"{\"a\": [1]}"}}', set()),
        (f" {{ {GOOD} }} ", {"a"}),
        (f'{{ "__metadata__" : {{ }} ,\n{GOOD} }} ', {"a"}),
        (
            f'{{\t{GOOD},"empty" : {{"shape": [3, 0], "data_offsets":[32, 32],"dtype":"F32"}}\n}}',
            {"a", "empty"},
        ),
    ],
)
def test_headers_of_other_writers(tmp_path: Path, header: str, keys: set[str]) -> None:
    """Blanks, orders of fields, metadata with braces in it: read where the format's own library reads them."""
    path = tmp_path / "model.safetensors"
    raw = with_header(header.encode(), b"\0" * (32 if GOOD in header else 0))
    path.write_bytes(raw)
    assert set(read_header(path).tensors) == keys == {name for name, _ in deserialize(raw)}


@pytest.mark.parametrize("raw", [b'{"a":' + b"[]," * 9_000_000, b'{"__metadata__":{' + b'"":"",' * 4_000_000])
def test_a_large_wrong_header_takes_neither_long_nor_memory(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(raw))
    tracemalloc.start()
    try:
        refused(path, "not what it should be")
        assert tracemalloc.get_traced_memory()[1] < 5 * len(raw)
    finally:
        tracemalloc.stop()


def test_flipped_bits_in_a_header_never_do_worse_than_an_error(tmp_path: Path) -> None:
    raw = sound()
    end = 8 + int.from_bytes(raw[:8], "little")
    path = tmp_path / "model.safetensors"
    dice = random.Random(0)
    messages: list[str] = []
    for _ in range(600):
        damaged = bytearray(raw)
        for _ in range(dice.choice([1, 1, 1, 2, 3])):
            damaged[dice.randrange(end)] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            shapes = [tuple(read(path, key).shape) for key in read_header(path).tensors]
        except RunError as error:
            messages.append(str(error))
        else:
            assert sorted(shapes) == [(2, 3), (4,)]
    assert 100 < len(messages) < 600
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(sound())
    header = read_header(path)
    path.write_bytes(sound()[:-4])
    with pytest.raises(RunError, match=r"model\.safetensors: changed its size"):
        fill(path, header, "a", torch.empty(2, 3))
    path.unlink()
    with pytest.raises(RunError, match=r"model\.safetensors: no such file"):
        fill(path, header, "a", torch.empty(2, 3))


def test_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    refused(path, "no such file")
    path.mkdir()
    refused(path, "not a file")
    path.rmdir()
    os.mkfifo(path)
    refused(path, "not a file")
