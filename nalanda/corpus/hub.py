"""Rows of a data set of the Hugging Face hub, streamed. Needs the extra `hub`; a data set's code is never run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nalanda.base.errors import DataError
from nalanda.corpus.document import Document
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.records import BadRow, from_record
from nalanda.corpus.sources import HubSource


def check() -> None:
    """Raises DataError where the package `datasets` is not installed."""
    _library()


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError("kind 'hub' needs the package 'datasets'; run: pip install -e '.[hub]'") from None
    return datasets


def read_hub(source: HubSource, quarantine: Quarantine) -> Iterator[Document]:
    """The rows of one part of a data set. Raises DataError where the hub cannot be reached or has no such set."""
    library = _library()
    languages = (source.language, source.target_language)
    rows = _stream(library, source)
    row = 0
    while True:
        try:
            record = next(rows, None)
        except Exception as error:  # the library raises its own kinds of a dozen other packages
            raise DataError(f"hub: {source.dataset}, after {row:,} rows: {_first_line(error)}") from error
        if record is None:
            return
        row += 1
        quarantine.saw()
        try:
            yield from_record(record, source, languages, quarantine.source, str(row))
        except BadRow as error:
            quarantine.add(
                source.dataset,
                str(error),
                row=row,
                data=str(record)[:4096].encode("utf-8", "backslashreplace"),
                language=source.target_language or source.language,
            )


def _stream(library: Any, source: HubSource) -> Iterator[dict[str, Any]]:
    try:
        return iter(
            library.load_dataset(
                source.dataset, source.subset, split=source.part, revision=source.revision, streaming=True
            )
        )
    except Exception as error:
        raise DataError(
            f"hub: data set '{source.dataset}' cannot be opened: {_first_line(error)}; check the name and the "
            "connection, or download its files and read them with kind jsonl, csv or parquet"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
