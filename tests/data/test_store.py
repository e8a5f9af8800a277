"""The token store: what is written is read back, and damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalanda.base.errors import DataError
from nalanda.data.store import TokenStore, open_store

ROWS = [[1, 2, 3], [], [65535], [7] * 1000]


@given(st.lists(st.lists(st.integers(0, 99_999), max_size=20), max_size=20))
@settings(max_examples=25, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]) -> None:
    store = TokenStore.write(tmp_path_factory.mktemp("store") / "s", rows, 100_000)
    assert [store[i].tolist() for i in range(len(store))] == rows
    order = np.arange(len(rows))[::-1]
    gathered = store.gather(order)
    assert gathered.lengths.tolist() == [len(row) for row in rows[::-1]]
    assert gathered.flat.tolist() == [token for row in rows[::-1] for token in row]


@pytest.mark.parametrize(("vocabulary", "size"), [(65536, 2), (65537, 4)])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(
    tmp_path: Path, vocabulary: int, size: int
) -> None:
    store = TokenStore.write(tmp_path / "s", ROWS, vocabulary)
    assert store.tokens.dtype.itemsize == size
    assert (tmp_path / "s" / "tokens.bin").stat().st_size == size * sum(map(len, ROWS))
    assert store[2].tolist() == [65535]


def test_languages_and_samples(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", 100, {"from": "here"}) as writer:
        writer.add([1], "hin_Deva", 10)
        writer.add([2], "tam_Taml", 11)
        writer.add([3], "hin_Deva", 11)
        writer.meta["later"] = 1
    store = TokenStore(tmp_path / "s", verify=True)
    assert store.languages is not None
    assert store.samples is not None
    assert [store.codes[i] for i in store.languages] == ["hin_Deva", "tam_Taml", "hin_Deva"]
    assert store.samples.tolist() == [10, 11, 11]
    assert store.meta == {"from": "here", "later": 1}
    with pytest.raises(IndexError):
        store[3]


def test_fingerprint_follows_tokens_bounds_languages_and_meta(tmp_path: Path) -> None:
    def made(name: str, rows: list[list[int]], **more: object) -> str:
        return TokenStore.write(tmp_path / name, rows, 100, **more).fingerprint  # type: ignore[arg-type]

    base = made("a", [[1, 2], [3]])
    assert made("b", [[1, 2], [3]]) == base
    others = {
        made("c", [[1], [2, 3]]),
        made("d", [[1, 2], [4]]),
        made("e", [[1, 2], [3]], meta={"x": 1}),
        made("f", [[1, 2], [3]], languages=["hin_Deva", "tam_Taml"]),
    }
    assert len(others | {base}) == 5


def test_writing_needs_memory_for_a_buffer_only(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", 300) as writer:
        largest = 0
        for _ in range(400):
            writer.add(list(range(256)) * 8)
            largest = max(largest, len(writer._buffer))
    assert largest <= (1 << 18) + 2048
    store = TokenStore(tmp_path / "s")
    assert len(store.tokens) == 400 * 2048
    assert store[399].tolist() == list(range(256)) * 8


def test_a_token_outside_the_vocabulary_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="token 100 is outside the vocabulary of 100"):
        TokenStore.write(tmp_path / "s", [[1], [100]], 100)
    assert list(tmp_path.iterdir()) == []


def test_a_store_cut_off_while_writing_does_not_appear(tmp_path: Path) -> None:
    def rows() -> object:
        yield [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TokenStore.write(tmp_path / "s", rows(), 100)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "languages.npy", "meta.json"])
def test_damage_is_found(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "s"
    TokenStore.write(folder, [[1, 2], [3]], 100, languages=["hin_Deva", "tam_Taml"])
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(DataError, match="delete"):
        TokenStore(folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="delete"):
        TokenStore(folder, verify=True)
    path.unlink()
    with pytest.raises(DataError, match="delete"):
        TokenStore(folder)


def test_an_empty_store(tmp_path: Path) -> None:
    store = TokenStore.write(tmp_path / "s", [], 100)
    assert len(store) == 0
    assert len(store.gather(np.arange(0))) == 0
