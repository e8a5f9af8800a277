"""What is written is read back, and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from nalanda.base.errors import DataError
from nalanda.corpus.document import Document
from nalanda.corpus.store import SplitWriter, count, read_split


def write(folder: Path, rows: list[Document]) -> None:
    with (folder / "train.parquet").open("wb") as file, SplitWriter(file) as writer:
        for row in rows:
            writer.write(row)


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    rows = [
        Document(f"text {n}", str(n), "eng_Latn", None if n % 3 else "पाठ", "", "x") for n in range(20_000)
    ]
    write(tmp_path, rows)
    assert list(read_split(tmp_path, "train")) == rows
    assert count(tmp_path, "train") == 20_000


def test_no_rows_is_a_split_too(tmp_path: Path) -> None:
    write(tmp_path, [])
    assert list(read_split(tmp_path, "train")) == []
    assert count(tmp_path, "train") == 0


def test_long_rows_make_small_row_groups(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write(tmp_path, [Document("x" * (1 << 23), str(n)) for n in range(6)])
    assert pq.read_metadata(tmp_path / "train.parquet").num_row_groups == 3


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished corpus"):
        list(read_split(tmp_path, "train"))
    with pytest.raises(DataError, match="'validation' is unknown; there are train, dev, test"):
        count(tmp_path, "validation")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="damaged"):
        count(tmp_path, "train")
    with pytest.raises(DataError, match="damaged"):
        list(read_split(tmp_path, "train"))
