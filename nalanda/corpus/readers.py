"""From a source's config to its rows as Documents; every kind of source enters here.

    with Quarantine(ledger, folder, source="names") as quarantine:
        for document in read(source, quarantine): ...

A row that cannot be read goes to the quarantine with its place and bytes, and reading goes on with the next. Text
is as it stands in the file: normalization and filters come after, in `build`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nalanda.corpus import hub, messages, packages, tables
from nalanda.corpus.compressed import Line, lines, whole
from nalanda.corpus.document import Document
from nalanda.corpus.gettext_files import read_gettext
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.records import BadRow, decode, from_record
from nalanda.corpus.sources import (
    BabelSource,
    CatalogsSource,
    FileSource,
    GettextSource,
    HubSource,
    Input,
    JsonlSource,
    MessagesSource,
    ParquetSource,
    SourceBase,
    TableSource,
    TextSource,
    inputs,
)


def check(source: SourceBase) -> None:
    """Raises DataError where the source's files, package or columns are not there, before anything is read."""
    if isinstance(source, FileSource):
        found = inputs(source)
        if isinstance(source, TableSource | ParquetSource):
            tables.check(source, found)
        if isinstance(source, MessagesSource):
            messages.check(source, found)
    elif isinstance(source, CatalogsSource | BabelSource):
        packages.check(source)
    elif isinstance(source, HubSource):
        hub.check()


def read(source: SourceBase, quarantine: Quarantine) -> Iterator[Document]:
    """The rows of `source` in the order of its files. Raises DataError for what is missing as a whole."""
    if isinstance(source, CatalogsSource):
        yield from packages.read_catalogs(source, quarantine)
    elif isinstance(source, BabelSource):
        yield from packages.read_babel(source, quarantine)
    elif isinstance(source, HubSource):
        yield from hub.read_hub(source, quarantine)
    elif isinstance(source, FileSource):
        for file in inputs(source):
            yield from _read_file(source, file, quarantine)
    else:
        raise TypeError(f"{type(source).__name__} is no source")


def _read_file(source: FileSource, file: Input, quarantine: Quarantine) -> Iterator[Document]:
    if isinstance(source, TextSource):
        yield from _read_text(source, file, quarantine)
    elif isinstance(source, JsonlSource):
        yield from _read_jsonl(source, file, quarantine)
    elif isinstance(source, TableSource):
        yield from tables.read_table(source, file, quarantine)
    elif isinstance(source, ParquetSource):
        yield from tables.read_parquet(source, file, quarantine)
    elif isinstance(source, GettextSource):
        yield from read_gettext(file, quarantine, source.origin)
    elif isinstance(source, MessagesSource):
        yield from messages.read_messages(source, file, quarantine)


def _read_text(source: TextSource, file: Input, quarantine: Quarantine) -> Iterator[Document]:
    if source.unit == "line":
        rows: Iterator[Line] = lines(file.path, quarantine, file.language, source.max_row_bytes)
    elif source.unit == "paragraph":
        rows = _paragraphs(source, file, quarantine)
    else:
        data, complete = whole(file.path, quarantine, file.language, source.max_row_bytes)
        if not complete:
            return
        quarantine.saw()
        rows = iter([Line(1, 0, data.removeprefix(b"\xef\xbb\xbf"))])
    name, origin = quarantine.source, source.origin or quarantine.source
    for row in rows:
        try:
            yield Document(decode(row.data), f"{name}:{file.name}:{row.row}", file.language, origin=origin)
        except BadRow as error:
            quarantine.add(
                file.path, str(error), row=row.row, offset=row.offset, data=row.data, language=file.language
            )


def _paragraphs(source: TextSource, file: Input, quarantine: Quarantine) -> Iterator[Line]:
    """Runs of lines between blank ones, each counted as one row; its number is that of its first line."""
    held: list[bytes] = []
    first, following = Line(0, 0, b""), 0

    def close() -> Iterator[Line]:
        if held:
            quarantine.saw()
            yield Line(first.row, first.offset, b"\n".join(held))
            held.clear()

    size = 0
    for line in lines(file.path, quarantine, file.language, source.max_row_bytes, counted=False):
        if not line.data.strip() or line.row != following or size + len(line.data) > source.max_row_bytes:
            yield from close()  # at a blank line, where a line was quarantined, and before it grows too long
        following = line.row + 1
        if line.data.strip():
            first, size = (first, size) if held else (line, 0)
            held.append(line.data)
            size += len(line.data) + 1
    yield from close()


def _read_jsonl(source: JsonlSource, file: Input, quarantine: Quarantine) -> Iterator[Document]:
    languages = (file.language, file.target_language)
    group = file.target_language or file.language
    for line in lines(file.path, quarantine, group, source.max_row_bytes):
        try:
            record = _parse_json(line.data)
            yield from_record(record, source, languages, quarantine.source, f"{file.name}:{line.row}")
        except BadRow as error:
            quarantine.add(
                file.path, str(error), row=line.row, offset=line.offset, data=line.data, language=group
            )


def _parse_json(data: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(decode(data))
    except (ValueError, RecursionError) as error:
        raise BadRow(
            f"not JSON: {error}" if data.strip() else "an empty line where a JSON object should be"
        ) from None
    if not isinstance(record, dict):
        raise BadRow(f"a JSON {type(record).__name__}, not an object")
    return record
