"""What a reader tells about the rows it meets: how many, and which ones are too damaged to be read.

    quarantine = Quarantine(ledger, folder, source="names", max_share=0.05)
    for row in ...:
        quarantine.saw()                                         # before anything is done to the row
        quarantine.add(path, "not UTF-8", offset=1200, data=raw)  # instead of yielding a Document
    quarantine.close()                                           # DataError if the share is above max_share

Each damaged row is a line of `folder/SOURCE.jsonl`: file, row (from 1), offset (bytes from the start of the file,
of the unpacked content where it was packed), length, reason, and the bytes in base64, up to 64 KiB of them.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from types import TracebackType
from typing import IO

from nalanda.base.errors import DataError
from nalanda.corpus.ledger import Ledger

_KEEP_BYTES = 1 << 16
_FLOOD = 10_000  # with this many damaged rows the share is looked at before the source ends


class Quarantine:
    """Counts rows met and stores damaged ones. With `folder=None` nothing is written."""

    def __init__(
        self,
        ledger: Ledger | None = None,
        folder: Path | None = None,
        source: str = "source",
        max_share: float = 1.0,
    ) -> None:
        self.ledger = ledger if ledger is not None else Ledger()
        self.folder, self.source, self.max_share = folder, source, max_share
        self.reasons: list[str] = []  # the first few, in words
        self.damaged: list[str] = []  # files whose reading broke off before their end
        self.notes: list[str] = []  # what was asked for and is not there, without being an error
        self._file: IO[str] | None = None
        self._seen = self._added = 0

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if kind is None:
            self._judge()

    def close(self) -> None:
        """Ends the source. Raises DataError where more than `max_share` of its rows are quarantined."""
        self.__exit__(None, None, None)

    def saw(self) -> None:
        """One more row was met."""
        self._seen += 1
        self.ledger.saw(self.source)

    def add(
        self,
        path: Path | str,
        reason: str,
        *,
        row: int | None = None,
        offset: int | None = None,
        data: bytes = b"",
        length: int | None = None,
        language: str = "",
    ) -> None:
        """Quarantines a row that was met. `data` is the row or its beginning, `length` its bytes in all."""
        self._added += 1
        self.ledger.arrived(self.source, language)
        self.ledger.count(self.source, language, "quarantined")
        if len(self.reasons) < 3:
            place = (
                f"row {row}" if row is not None else f"byte {offset}" if offset is not None else "whole file"
            )
            self.reasons.append(f"{path}, {place}: {reason}")
        record = {
            "file": str(path),
            "row": row,
            "offset": offset,
            "length": len(data) if length is None else length,
            "reason": reason,
            "language": language,
            "bytes": base64.b64encode(data[:_KEEP_BYTES]).decode("ascii"),
        }
        self._write(json.dumps(record, ensure_ascii=False))
        if self._added >= _FLOOD and self._added % 1000 == 0:
            self._judge()

    def broke(
        self, path: Path | str, reason: str, *, row: int | None, offset: int, data: bytes, language: str
    ) -> None:
        """The file cannot be read beyond `offset`: what lies there counts as one row, and the file is named."""
        self.saw()
        self.damaged.append(f"{path}: {reason} at byte {offset}; what stands before is used, the rest is not")
        self.add(path, reason, row=row, offset=offset, data=data, language=language)

    def _write(self, line: str) -> None:
        if self.folder is None:
            return
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]+", "_", self.source)
            self._file = (self.folder / f"{name}.jsonl").open("w", encoding="utf-8")
        self._file.write(line + "\n")

    def _judge(self) -> None:
        if self._added and self._added > self.max_share * self._seen:
            if self._file is not None:
                self._file.flush()
            where = f" (all of them: {self.folder})" if self.folder else ""
            raise DataError(
                f"source '{self.source}': {self._added:,} of {self._seen:,} rows cannot be read, more than "
                f"max_quarantined = {self.max_share:g} allows: {'; '.join(self.reasons)}{where}. "
                "Mend the data or raise max_quarantined"
            )
