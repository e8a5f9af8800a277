"""A finished corpus: `train.parquet`, `dev.parquet`, `test.parquet` in a folder, read row group by row group.

for document in read_split(folder, "train"): ...
count(folder, "test")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from nalanda.base.errors import DataError
from nalanda.corpus.document import Document
from nalanda.corpus.split import SPLITS

COLUMNS = ("id", "text", "language", "target", "target_language", "origin")
_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=name == "target") for name in COLUMNS])
_ROWS = 8192  # a row group
_CHARACTERS = 1 << 24  # or this much text, where rows are long


class SplitWriter:
    """Writes Documents to an open binary file as parquet, zstd, in row groups of bounded size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._writer = pq.ParquetWriter(file, _SCHEMA, compression="zstd")
        self._rows: list[Document] = []
        self._characters = 0
        self.count = 0

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, document: Document) -> None:
        """Appends one row; `meta` is not stored."""
        self._rows.append(document)
        self._characters += len(document.text) + len(document.target or "")
        self.count += 1
        if len(self._rows) >= _ROWS or self._characters >= _CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = {name: [getattr(row, name) for row in self._rows] for name in COLUMNS}
            self._writer.write_table(pa.table(columns, schema=_SCHEMA))
            self._rows, self._characters = [], 0


def read_parquet_rows(path: Path) -> Iterator[Document]:
    """The rows of one file that SplitWriter wrote. Raises DataError where it is damaged."""
    try:
        with pq.ParquetFile(path) as table:
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(batch_size=1024, row_groups=[group], columns=list(COLUMNS)):
                    for row in zip(*(batch.column(name).to_pylist() for name in COLUMNS)):
                        identity, text, language, target, target_language, origin = row
                        yield Document(text, identity, language, target, target_language, origin)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: damaged, not a corpus file: {str(error).splitlines()[0]}; make the corpus again"
        ) from None


def _path(folder: Path, split: str) -> Path:
    if split not in SPLITS:
        raise DataError(f"split '{split}' is unknown; there are {', '.join(SPLITS)}")
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: no such file; {folder} holds no finished corpus (nalanda corpus makes one)")
    return path


def read_split(folder: Path, split: str) -> Iterator[Document]:
    """The rows of one split in their order. Raises DataError where the folder holds no corpus."""
    return read_parquet_rows(_path(folder, split))


def count(folder: Path, split: str) -> int:
    """How many rows a split has, from the file's own footer."""
    path = _path(folder, split)
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: damaged, not a corpus file: {str(error).splitlines()[0]}; make the corpus again"
        ) from None
