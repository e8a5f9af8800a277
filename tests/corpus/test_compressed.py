"""Plain and packed bytes, whole and damaged."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nalanda.base.errors import DataError
from nalanda.corpus import compressed
from nalanda.corpus.compressed import Break, Line, chunks, lines, whole
from nalanda.corpus.quarantine import Quarantine

TEXT = b"".join(b"row %d with some text %d\n" % (n, n * 7919 % 1000) for n in range(40_000))


def pack(path: Path, data: bytes) -> bytes:
    if path.suffix == ".gz":
        return gzip.compress(data)
    if path.suffix == ".zst":
        return zstandard.ZstdCompressor().compress(data)
    return data


def drain(path: Path) -> tuple[bytes, str]:
    out = bytearray()
    try:
        for chunk in chunks(path):
            out += chunk
    except Break as error:
        return bytes(out), str(error)
    return bytes(out), ""


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_whole_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pack(path, TEXT))
    assert drain(path) == (TEXT, "")
    path.write_bytes(pack(path, TEXT) + pack(path, b"second\n"))  # packed twice and joined, as `cat` does
    assert drain(path) == (TEXT + b"second\n", "")


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_gives_what_stands_before_the_cut(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    packed = pack(path, TEXT)
    path.write_bytes(packed[: int(len(packed) * share)])
    data, reason = drain(path)
    assert TEXT.startswith(data)
    assert "ends early" in reason
    # Both unpack by blocks, zstd's of 128 KiB, and pack the start of a file less than its rest.
    assert len(data) >= len(TEXT) * share - (3 << 17)


def test_damage_in_the_middle_of_gzip_loses_only_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    packed = bytearray(pack(path, TEXT))
    middle = len(packed) // 2
    packed[middle : middle + 64] = b"\xff" * 64
    path.write_bytes(packed)
    data, reason = drain(path)
    assert reason
    assert data[: len(TEXT) // 4] == TEXT[: len(TEXT) // 4]


def test_a_changed_byte_at_the_end_is_seen_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    packed = bytearray(pack(path, TEXT))
    packed[-5] ^= 1  # in the CRC
    path.write_bytes(packed)
    data, reason = drain(path)
    assert "damaged gzip data" in reason
    assert data == TEXT


def test_zeros_after_a_gzip_file_are_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one\n") + b"\0" * 512)
    assert drain(path) == (b"one\n", "")


def test_no_gzip_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(b"this is not packed\n")
    assert drain(path)[1].startswith("damaged gzip data")
    with pytest.raises(DataError, match="cannot be read"):
        drain(tmp_path / "missing.gz")


@pytest.mark.parametrize("name", ["bomb.gz", "bomb.zst"])
def test_a_bomb_stays_small_in_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pack(path, b"\0" * (64 << 20)))
    tracemalloc.start()
    total = sum(len(chunk) for chunk in chunks(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 40 << 20


row = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b""))


@given(
    rows=st.lists(row, max_size=30), last=row, chunk=st.integers(1, 64), end=st.sampled_from([b"\n", b"\r\n"])
)
def test_lines_are_those_of_the_file_however_it_is_cut_into_chunks(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], last: bytes, chunk: int, end: bytes
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    data = b"".join(r + end for r in rows) + last
    path.write_bytes(data)
    quarantine = Quarantine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "_CHUNK", chunk)
        found = list(lines(path, quarantine))
    assert [line.data for line in found] == [
        r.removeprefix(b"\xef\xbb\xbf") if i == 0 else r
        for i, r in enumerate(rows + ([last] if last else []))
    ]
    for line in found[1:]:
        assert data[line.offset :].startswith(line.data)
    assert [line.row for line in found] == list(range(1, len(found) + 1))


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    limit=st.integers(1, 20),
    chunk=st.integers(1, 16),
)
def test_long_lines_are_quarantined_and_the_others_read(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    rows = [bytes([97 + i % 26]) * size for i, size in enumerate(sizes)]
    path.write_bytes(b"".join(r + b"\n" for r in rows))
    quarantine = Quarantine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "_CHUNK", chunk)
        found = list(lines(path, quarantine, max_row_bytes=limit))
    assert [line.data for line in found] == [r for r in rows if len(r) <= limit]
    assert quarantine.ledger.total("quarantined") == sum(len(r) > limit for r in rows)


def test_a_mark_at_the_start_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert list(lines(path, Quarantine())) == [Line(1, 0, b"one"), Line(2, 8, b"two")]


def test_whole_says_whether_it_is_all(tmp_path: Path) -> None:
    path = tmp_path / "a.po"
    path.write_bytes(b"x" * 100)
    assert whole(path, Quarantine()) == (b"x" * 100, True)
    quarantine = Quarantine()
    assert whole(path, quarantine, max_bytes=50) == (b"", False)
    assert "more than 50 bytes" in quarantine.damaged[0]
