"""Tables: csv, tsv and parquet."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalanda.base.errors import DataError
from nalanda.corpus.document import Document
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.readers import check, read
from nalanda.corpus.sources import ParquetSource, SourceBase, TableSource


def collect(source: SourceBase) -> tuple[list[Document], Quarantine]:
    quarantine = Quarantine(source="test")
    documents = list(read(source, quarantine))
    quarantine.ledger.arrived("test", "", len(documents))
    quarantine.ledger.count("test", "", "kept", rows=len(documents))
    quarantine.ledger.check()
    return documents, quarantine


def test_csv_with_quotes_line_ends_and_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\r\n1,"a, b"\r\n2,"two\r\nlines ""quoted"""\r\n\r\n3,plain "inch"\r\n')
    documents, _ = collect(TableSource(kind="csv", path=str(path), id_field="id"))
    assert [(d.id, d.text) for d in documents] == [
        ("1", "a, b"), ("2", 'two\nlines "quoted"'), ("3", 'plain "inch"')
    ]  # fmt: skip


def test_tsv_takes_quotes_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress('Sun\t"सूर्य\nMoon\tचाँद"\n'.encode()))
    source = TableSource(kind="tsv", path=str(path), columns=("en", "hi"), text="en", target="hi")
    documents, _ = collect(source)
    assert [(d.text, d.target) for d in documents] == [("Sun", '"सूर्य'), ("Moon", 'चाँद"')]


def test_wrong_columns_are_quarantined_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,n\nok,1\nshort\nlong,1,2\nbad\xff,3\nok too,4\n")
    documents, quarantine = collect(TableSource(kind="csv", path=str(path)))
    assert [d.text for d in documents] == ["ok", "ok too"]
    assert quarantine.ledger.total("quarantined") == 3
    assert "row 3: 1 columns where 2 are expected" in quarantine.reasons[0]
    assert "row 4: 3 columns" in quarantine.reasons[1]


@pytest.mark.parametrize("lines_after", [3, 3000])
def test_a_stray_quote_takes_its_own_line_only(tmp_path: Path, lines_after: int) -> None:
    path = tmp_path / "a.csv"
    after = b"".join(b"row,%d\n" % n for n in range(lines_after))
    path.write_bytes(b'text,n\n"never closed,1\n' + after + b'"a ""quoted"" cell",9\n')
    documents, quarantine = collect(TableSource(kind="csv", path=str(path)))
    assert len(documents) == lines_after + 1
    assert documents[-1].text == 'a "quoted" cell'
    assert quarantine.ledger.total("quarantined") == 1


def test_a_missing_column_names_the_nearest_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"texts,n\na,1\n")
    with pytest.raises(DataError, match="no column 'text'; did you mean 'texts'"):
        check(TableSource(kind="csv", path=str(path)))
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'; it has: body"):
        check(ParquetSource(path=f"{tmp_path}/a.parquet"))


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"")
    check(TableSource(kind="csv", path=str(path)))
    assert collect(TableSource(kind="csv", path=str(path)))[0] == []


cell = st.text(st.characters(exclude_characters="\r\0", exclude_categories=("Cs",)), max_size=12)


@given(rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=8))
def test_what_pythons_writer_wrote_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("text", "target"), *rows])
    path.write_bytes(buffer.getvalue().encode("utf-8"))
    documents, quarantine = collect(TableSource(kind="csv", path=str(path), target="target"))
    assert [(d.text, d.target) for d in documents] == rows
    assert quarantine.ledger.total("quarantined") == 0


@pytest.mark.parametrize("packed", [False, True])
def test_parquet(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["एक", None, "तीन"], "n": [1, 2, 3]}), path)
    if packed:
        data = gzip.compress(path.read_bytes())
        path = tmp_path / "a.parquet.gz"
        path.write_bytes(data)
    documents, quarantine = collect(ParquetSource(path=str(path)))
    assert [(d.text, d.id) for d in documents] == [
        ("एक", f"test:{path.name}:1"),
        ("तीन", f"test:{path.name}:3"),
    ]
    assert "row 2: field 'text' is null" in quarantine.reasons[0]


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = pa.array([b"ok", b"b\xffd"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": values}), path)
    documents, quarantine = collect(ParquetSource(path=str(path)))
    assert [d.text for d in documents] == ["ok"]
    assert "not UTF-8 at byte 1" in quarantine.reasons[0]


def test_a_cut_parquet_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable parquet file"):
        check(ParquetSource(path=str(path)))


def test_damage_inside_parquet_keeps_what_stands_before(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"row {n * 7919}" for n in range(20_000)]
    pq.write_table(
        pa.table({"text": rows}), path, row_group_size=5000, compression="zstd", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    place = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    data[place + 40 : place + 400] = b"\xff" * 360
    path.write_bytes(data)
    documents, quarantine = collect(ParquetSource(path=str(path)))
    assert [d.text for d in documents] == rows[: len(documents)]
    assert len(documents) >= 9_000
    assert "damaged parquet data" in quarantine.damaged[0]
