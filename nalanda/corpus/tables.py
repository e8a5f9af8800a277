"""Rows of .csv, .tsv and .parquet files, plain or packed.

A quoted field of a .csv may hold line ends. Where a quote never closes, its own line is quarantined and reading goes
on with the next one, so that one stray quote does not swallow the rest of a file.
"""

from __future__ import annotations

import csv
import difflib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from nalanda.base.errors import DataError
from nalanda.corpus.compressed import Break, Line, chunks, lines
from nalanda.corpus.document import Document
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.records import BadRow, decode, from_record
from nalanda.corpus.sources import Input, ParquetSource, RecordSource, TableSource

_LINES_IN_ROW = 1000  # how many lines a quoted field may go over before its quote counts as stray
_BATCH = 1024


def check(source: TableSource | ParquetSource, files: list[Input]) -> None:
    """Raises DataError where a file lacks a column that the source names."""
    for file in files:
        if isinstance(source, ParquetSource):
            if file.path.suffix == ".parquet":
                with _parquet(file.path) as table:
                    _check_columns(source, table.schema_arrow.names, file.path)
        else:
            columns = source.columns or _header(source, file)
            if columns is not None:
                _check_columns(source, list(columns), file.path)


def _check_columns(source: RecordSource, columns: list[str], path: Path) -> None:
    for name in source.fields():
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(columns[:20])}"
            raise DataError(f"{path}: there is no column '{name}'; {hint}")


def _format(source: TableSource) -> dict[str, Any]:
    quotes = source.kind == "csv" if source.quotes is None else source.quotes
    return {
        "delimiter": source.delimiter or ("," if source.kind == "csv" else "\t"),
        "quoting": csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        "quotechar": '"' if quotes else None,
        "strict": True,
    }


def _header(source: TableSource, file: Input) -> tuple[str, ...] | None:
    """The names in the first row; None for an empty file."""
    for _, cells in _rows(source, file, Quarantine()):
        return tuple(cells)
    return None


def read_table(source: TableSource, file: Input, quarantine: Quarantine) -> Iterator[Document]:
    """The rows of a .csv or .tsv file. A header row is not counted as one."""
    group = file.target_language or file.language
    columns = source.columns
    for line, cells in _rows(source, file, quarantine):
        if not columns:
            columns = tuple(cells)
            continue
        quarantine.saw()
        try:
            if len(cells) != len(columns):
                raise BadRow(f"{len(cells)} columns where {len(columns)} are expected")
            record = dict(zip(columns, cells))
            place = f"{file.name}:{line.row}"
            yield from_record(record, source, (file.language, file.target_language), quarantine.source, place)
        except BadRow as error:
            quarantine.add(
                file.path, str(error), row=line.row, offset=line.offset, data=line.data, language=group
            )


def _rows(source: TableSource, file: Input, quarantine: Quarantine) -> Iterator[tuple[Line, list[str]]]:
    """Rows with the lines that they stand on; lines that are no row are quarantined. Blank lines are none."""
    style, limit = _format(source), source.max_row_bytes
    group = file.target_language or file.language
    csv.field_size_limit(max(limit, csv.field_size_limit()))
    waiting = lines(file.path, quarantine, group, limit, counted=False)
    ahead: list[Line] = []  # lines read in search of a closing quote, and given back
    while True:
        first = ahead.pop(0) if ahead else next(waiting, None)
        if first is None:
            return
        if not first.data.strip():
            continue
        taken = [first]
        try:
            while True:
                data = b"\n".join(line.data for line in taken)
                cells = _cells(decode(data), style)
                if cells is not None:
                    yield Line(first.row, first.offset, data), cells
                    break
                if not _extend(taken, ahead, waiting, limit):
                    raise BadRow("a quote opens a field and never closes")
        except BadRow as error:
            ahead = taken[1:] + ahead
            quarantine.saw()
            quarantine.add(
                file.path, str(error), row=first.row, offset=first.offset, data=first.data, language=group
            )


def _extend(taken: list[Line], ahead: list[Line], waiting: Iterator[Line], limit: int) -> bool:
    """Adds lines to `taken` up to one with a quote; False where there is none within a row's bounds."""
    size = sum(len(line.data) for line in taken)
    while len(taken) < _LINES_IN_ROW and size <= limit:
        line = ahead.pop(0) if ahead else next(waiting, None)
        if line is None:
            return False
        taken.append(line)
        size += len(line.data)
        if b'"' in line.data:
            return size <= limit
    return False


def _cells(text: str, style: dict[str, Any]) -> list[str] | None:
    """The cells of one row; None where a quoted field is still open. Raises BadRow."""
    try:
        parsed = list(csv.reader([line + "\n" for line in text.split("\n")], **style))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            return None
        raise BadRow(f"not a row of this table: {error}") from None
    if len(parsed) != 1:
        raise BadRow("a line end outside quotes")
    return parsed[0]


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def read_parquet(source: ParquetSource, file: Input, quarantine: Quarantine) -> Iterator[Document]:
    """The rows of a parquet file, batch by batch; a damaged row group ends the file and is quarantined."""
    group = file.target_language or file.language
    with tempfile.TemporaryFile() as unpacked:
        if file.path.suffix == ".parquet":
            table = _parquet(file.path)
        else:
            try:
                table = _unpack(file.path, unpacked)
            except Break as error:
                quarantine.broke(file.path, str(error), row=None, offset=0, data=b"", language=group)
                return
        with table:
            _check_columns(source, table.schema_arrow.names, file.path)
            yield from _read_batches(table, source, file, quarantine, group)


def _unpack(path: Path, place: IO[bytes]) -> pq.ParquetFile:
    for chunk in chunks(path):
        place.write(chunk)
    place.seek(0)
    try:
        return pq.ParquetFile(place)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def _read_batches(
    table: pq.ParquetFile, source: ParquetSource, file: Input, quarantine: Quarantine, group: str
) -> Iterator[Document]:
    names = list(dict.fromkeys(source.fields()))
    row = 0
    batches = table.iter_batches(batch_size=_BATCH, columns=names)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            reason = f"damaged parquet data: {str(error).splitlines()[0]}"
            quarantine.broke(file.path, reason, row=row + 1, offset=0, data=b"", language=group)
            return
        if batch is None:
            return
        columns = {name: _column(batch.column(name)) for name in names}
        for index in range(batch.num_rows):
            row += 1
            quarantine.saw()
            raw = {name: values[index] for name, values in columns.items()}
            try:
                record = {name: decode(v) if isinstance(v, bytes) else v for name, v in raw.items()}
                place = f"{file.name}:{row}"
                yield from_record(
                    record, source, (file.language, file.target_language), quarantine.source, place
                )
            except BadRow as error:
                data = b"\t".join(v if isinstance(v, bytes) else str(v).encode() for v in raw.values())
                quarantine.add(file.path, str(error), row=row, data=data, language=group)


def _column(values: pa.Array) -> list[Any]:
    """Python values; text as bytes, since parquet does not promise that it is UTF-8."""
    if pa.types.is_string(values.type):
        return values.cast(pa.binary()).to_pylist()
    if pa.types.is_large_string(values.type):
        return values.cast(pa.large_binary()).to_pylist()
    return values.to_pylist()
